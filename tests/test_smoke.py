def test_tiny(tiny_recipe, tmp_path):
    import json, vitseg
    ev=list(vitseg.train(tiny_recipe, tmp_path/"r"))
    print((tmp_path/"r/summary.json").read_text()[:3000])
    assert list(vitseg.replay(tmp_path/"r"))==[e for e in ev if not e.transient]
    vitseg.report(tmp_path/"r")
def test_families(encoders, tiny_recipe, tmp_path):
    import vitseg
    for f,p in encoders.items():
        r=tiny_recipe.replace({"model.encoder":p,"data.size":[64,50]})
        list(vitseg.train(r,tmp_path/f))
        vitseg.load(tmp_path/f)
