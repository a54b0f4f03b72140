"""The two small towers that the demo joins. Each is taken from its own longer run on phantoms of its own.

    bash launch/demo_towers.sh

makes both: 8,000 phantoms of seed 101 for the image tower, of seed 202 for the text tower; the demo's are of seed 1, so
no phantom patient is shared. Each run trains both of its towers from scratch and gives up one of them. Texts are the
impressions alone, and films are not cropped: from scratch, with whole reports and random_resized crops, small findings
were still at chance after 1,200 steps.
Cost: about fifteen minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from hybridclip_jax.config import add_eval, default

SEEDS = {"image": 101, "text": 202}


def get_config(tower: str = "image") -> ConfigDict:
    config = default()
    store = f"stores/towers_{tower}"
    config.seed = SEEDS[tower]
    config.steps = 600
    config.eval_every = 200
    config.checkpoint.every = 200
    config.model.image.arch = "dinov3_tiny32"
    config.model.text.arch = "clip_text_tiny"
    config.model.embed_dim = 128
    config.data.train = f"{store}:train"
    config.data.flip = False
    config.data.crop = "none"
    config.data.sentences = 6
    config.optim.name = "adamw"
    config.optim.learning_rate = 5e-4
    config.optim.weight_decay = 0.05
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.optim.groups = ((".*/(kernel|token_embedding)", 1.0, 1.0), (".*", 1.0, 0.0))
    add_eval(config, "templated", data=f"{store}:val", prompts="templated")
    add_eval(config, "bare", data=f"{store}:val", prompts="chexzero")
    config.select.metric = "templated/auroc/mean"
    return config
