"""The two small towers that the demo joins. Each is taken from its own longer run on phantoms of its own.

    bash launch/demo_towers.sh

makes both: 8,000 phantoms of seed 101 for the image tower, of seed 202 for the text tower; the demo's are of seed 1, so
no phantom patient is shared. Each run trains both of its towers from scratch and gives up one of them. The image
tower's goes on for a second leg, with longer texts: thin devices and small lesions are learnt last.
Cost: an hour and a half on two CPU cores.
"""

from ml_collections import ConfigDict

from hybridclip_jax.config import add_eval, default

# leg -> (seed, store, steps, sentences drawn from a report at most)
LEGS = {
    "image_first": (101, "stores/towers_image", 2500, 3),
    "image": (102, "stores/towers_image", 2500, 6),
    "text": (202, "stores/towers_text", 1500, 3),
}


def get_config(leg: str = "image_first") -> ConfigDict:
    config = default()
    config.seed, store, config.steps, config.data.sentences = LEGS[leg]
    config.eval_every = 250
    config.checkpoint.every = 250
    config.model.image.arch = "dinov3_tiny32"
    config.model.text.arch = "clip_text_tiny"
    if leg == "image":
        config.model.image.weights = config.model.text.weights = "runs/towers_image_first/best"
    config.model.embed_dim = 128
    config.data.train = f"{store}:train"
    config.data.flip = False
    config.data.crop = "random_resized"
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.05
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 200
    config.optim.groups = ((".*/(kernel|token_embedding)", 1.0, 1.0), (".*", 1.0, 0.0))
    add_eval(config, "templated", data=f"{store}:val", prompts="templated")
    add_eval(config, "bare", data=f"{store}:val", prompts="chexzero")
    config.select.metric = "templated/auroc/mean"
    return config
