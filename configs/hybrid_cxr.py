"""The recipe: DINOv3 ViT-B/16 and CLIP's text transformer at 512 tokens, joined by one new 768 -> 512 layer.

    python -m hybridclip_jax.main --config=configs/hybrid_cxr.py --workdir=runs/hybrid \\
        --config.data.train=STORE:train --config.evals.external.data=OTHER_STORE:val

Pretrained towers: convert them (README, "Weights in and out") and add --config.model.image.weights=DIR
--config.model.text.weights=DIR. The image tower: --input-norm clip, so that DINOv3 sees its own statistics. The text
tower: --context 512, as published ones have 77 positions; or keep their 77 with --config.model.text.context=77.

Cost: `hybridclip budget --config=configs/hybrid_cxr.py` prints 149.7 M parameters, about 14.9 TFLOP a step at the
full 512 tokens and 0.0043 PF-days for the 25,000 steps.
Expect: nothing yet. The one public run of this recipe stayed at chance for 25,000 steps (loss 4.164 against
ln 64 = 4.159); `main` says so when a run does the same.
The horizontal flip is part of the recipe. It swaps left and right, which reports name; `main` warns.
"""

from ml_collections import ConfigDict

from hybridclip_jax.config import add_eval, default


def get_config() -> ConfigDict:
    config = default()
    add_eval(config, "external", protocol="chexzero", prompts="chexzero")
    config.select.metric = "external/auroc/mean"
    # CheXzero's ensemble is of ten checkpoints (unverified: recalled from the paper); each is 0.6 GB
    config.select.keep = 10
    return config
