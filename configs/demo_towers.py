"""The two small towers that the demo joins. Each is taken from its own longer run on phantoms of its own.

python -m hybridclip_jax.cli prepare --format phantom --seed 101 --count 8000 --out stores/towers_image
python -m hybridclip_jax.main --config=configs/demo_towers.py:image --workdir=runs/towers_image
python -m hybridclip_jax.cli prepare --format phantom --seed 202 --count 8000 --out stores/towers_text
python -m hybridclip_jax.main --config=configs/demo_towers.py:text --workdir=runs/towers_text
"""

from ml_collections import ConfigDict

from hybridclip_jax.config import add_eval, default

SEEDS = {"image": 101, "text": 202}
STEPS = {"image": 2500, "text": 1500}


def get_config(tower: str = "image") -> ConfigDict:
    config = default()
    config.seed = SEEDS[tower]
    config.steps = STEPS[tower]
    config.eval_every = 250
    config.checkpoint.every = 250
    config.model.image.arch = "dinov3_tiny32"
    config.model.text.arch = "clip_text_tiny"
    config.model.embed_dim = 128
    config.data.train = f"stores/towers_{tower}:train"
    config.data.flip = False
    config.data.crop = "random_resized"
    config.data.sentences = 3
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.05
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 200
    config.optim.groups = ((".*/(kernel|token_embedding)", 1.0, 1.0), (".*", 1.0, 0.0))
    add_eval(config, "templated", data=f"stores/towers_{tower}:val", prompts="templated")
    add_eval(config, "bare", data=f"stores/towers_{tower}:val", prompts="chexzero")
    config.select.metric = "templated/auroc/mean"
    return config
