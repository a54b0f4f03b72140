"""The demo: two small towers that never met, joined on phantoms through the pipeline of the real recipe.

    bash launch/demo.sh

does all of it; by hand, from the repository's root:

    python -m hybridclip_jax.cli prepare --format phantom --seed 1 --count 4000 --out stores/demo
    python -m hybridclip_jax.main --config=configs/demo.py --workdir=runs/demo

Cost: a few minutes on two CPU cores. Expect: mean zero-shot AUROC above 0.8 on held-out phantom patients.
Against the recipe: small towers (configs/towers, made by configs/demo_towers.py on other phantoms), AdamW with warm-up
and cosine instead of SGD, no flip, sampled sentences, random_resized crop. It is synthetic: it shows that the
machinery learns, not that anything is known about patients.
"""

from ml_collections import ConfigDict

from hybridclip_jax.config import add_eval, default


def get_config() -> ConfigDict:
    config = default()
    config.steps = 300
    config.eval_every = 100
    config.log_every = 10
    config.checkpoint.every = 50
    config.model.image.arch = "dinov3_tiny32"
    config.model.image.weights = "configs/towers/image"
    config.model.text.arch = "clip_text_tiny"
    config.model.text.weights = "configs/towers/text"
    config.model.embed_dim = 128
    config.data.train = "stores/demo:train"
    config.data.crop = "random_resized"
    config.data.flip = False
    config.data.sentences = 6
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.05
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 50
    config.optim.groups = ((".*/(kernel|token_embedding)", 1.0, 1.0), (".*", 1.0, 0.0))
    add_eval(config, "templated", data="stores/demo:val", prompts="templated")
    add_eval(config, "bare", data="stores/demo:val", prompts="chexzero")
    config.select.metric = "templated/auroc/mean"
    config.select.keep = 3
    return config
