import sys

from vitseg.cli import main

sys.exit(main())
