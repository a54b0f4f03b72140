"""What can be converted, as a page of text."""

from __future__ import annotations

from hybridclip_jax.logs import table

# layout, what, where from, licence, size of the file, example
ROWS = (
    (
        "dinov3-hf",
        "DINOv3 S, S+, B, L, H+, 7B",
        "hub: facebook/dinov3-vit*-pretrain-*",
        "DINOv3 License",
        "B: 0.34 GB",
        "to-jax facebook/dinov3-vitb16-pretrain-lvd1689m --input-norm clip --out weights/dinov3",
    ),
    (
        "dinov3-meta",
        "the same and L+, .pth",
        "Meta, after its form",
        "DINOv3 License",
        "B: 0.34 GB",
        "to-jax dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth --input-norm clip --out weights/dinov3",
    ),
    (
        "dinov3-timm",
        "the same, safetensors",
        "hub: timm/vit_*_dinov3*",
        "DINOv3 License",
        "B: 0.34 GB",
        "to-jax timm/vit_base_patch16_dinov3.lvd1689m --input-norm clip --out weights/dinov3",
    ),
    (
        "clip-openai",
        "CLIP ViT-B/32, B/16, L/14, L/14@336, RN50, RN50x4",
        "OpenAI, .pt archives",
        "MIT",
        "B/32: 0.35 GB",
        "to-jax ViT-B-32.pt --out weights/clip",
    ),
    (
        "clip-openai",
        "CheXzero (ten checkpoints)",
        "its repository's drive folder",
        "MIT",
        "0.3 to 0.6 GB",
        "to-jax best_64_5e-05_original_22000_0.864.pt --activation quick_gelu --statistics chexzero --context 512 "
        "--out weights/chexzero",
    ),
    (
        "clip-openai",
        "Long-CLIP B, L (248 tokens)",
        "hub: BeichenZhang/LongCLIP-*, .pt",
        "as stated there",
        "B: 0.3 to 0.6 GB",
        "to-jax longclip-B.pt --activation quick_gelu --out weights/longclip",
    ),
    (
        "clip-openai",
        "PubMedCLIP, best_model.pth",
        "its repository",
        "MIT",
        "with its optimiser, about three times the model",
        "to-jax PubMedCLIP_ViT32.pth --activation quick_gelu --statistics imagenet --out weights/pubmedclip",
    ),
    (
        "clip-hf",
        "CLIPModel",
        "hub: openai/clip-vit-*, vinid/plip",
        "as stated there",
        "B/32: 0.6 GB",
        "to-jax vinid/plip --colour --out weights/plip",
    ),
    (
        "hybrid-hf",
        "what to-hf wrote, trained on or not",
        "you",
        "DINOv3 License",
        "B/16: 0.6 GB",
        "to-jax mine-hf --out weights/mine",
    ),
    (
        "clip-text-hf",
        "CLIPTextModelWithProjection, CLIPTextModel",
        "hub",
        "as stated there",
        "B: 0.25 GB",
        "to-jax FOLDER --out weights/text",
    ),
)


def render() -> str:
    """The table of ROWS, then one example command for each."""
    head = table(["layout", "what", "from", "licence", "size"], [row[:5] for row in ROWS])
    commands = "\n".join(f"python -m converters {row[5]}" for row in ROWS)
    return f"{head}\n\n{commands}\n\nback: python -m converters to-hf DIR --out DIR2"
