"""Near copies: each way in which people copy an image is found again, and different images are not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from planted import chest, clouds, crop, exposed, jpeg, shifted

from hybridclip_jax.data import near_copies, registration
from hybridclip_jax.data.near_copies import CONFIRMED_FROM, Found, Pictures
from hybridclip_jax.data.registration import Details, Pose, correlation

COPIES = {
    "encoded again": lambda image: jpeg(image, 50),
    "darker": lambda image: exposed(image, 0.8, -15),
    "brighter, encoded again": lambda image: jpeg(exposed(image, 1.15, 12), 60),
    "crop, top left": lambda image: crop(image, 0, 0),
    "crop, bottom right, encoded again": lambda image: jpeg(crop(image, 0.1, 0.1)),
    "crop, middle, darker": lambda image: exposed(crop(image, 0.05, 0.05), 0.85, 0),
    "crop of 5 %": lambda image: crop(image, 0.05, 0, 0.95, 0.95),
    "crop of one side": lambda image: crop(image, 0.1, 0, 0.9, 1.0),
    "shifted": lambda image: shifted(image, 9, -6),
    "shifted by 5 %": lambda image: jpeg(shifted(image, -16, 16), 75),
}


def pictures(images: Sequence[np.ndarray]) -> Pictures:
    """Grey [320, 320] or colour [320, 320, 3]."""
    whole = np.stack(images).reshape(len(images), 320, 320, -1)
    return Pictures(lambda rows: whole[rows], [image.tobytes().hex() for image in images])


def find(*groups: Pictures) -> Found:
    return near_copies.find(groups, lambda what, done, total: None)


def pairs(found: Found) -> list[tuple[int, int, int, int]]:
    return [(copy.group, copy.row, copy.other_group, copy.other_row) for copy in found.copies]


@pytest.mark.parametrize("drawn", [clouds, chest])
def test_every_kind_of_copy_is_found_and_nothing_else(drawn: object) -> None:
    originals = [drawn(i) for i in range(len(COPIES) + 6)]  # type: ignore[operator]
    copies = [copy(image) for copy, image in zip(COPIES.values(), originals, strict=False)]
    found = find(pictures(originals), pictures(copies))
    missed = [name for i, name in enumerate(COPIES) if (0, i, 1, i) not in pairs(found)]
    assert not missed
    assert pairs(found) == [(0, i, 1, i) for i in range(len(copies))]
    assert all(CONFIRMED_FROM <= copy.score <= 1 for copy in found.copies)
    assert found.blank == [[], []]


def test_copies_within_a_group_and_of_copies_are_found_once_each() -> None:
    source = clouds(1)
    images = [source, clouds(2), crop(source, 0.1, 0), clouds(3), jpeg(source, 40)]
    assert pairs(find(pictures(images))) == [(0, 0, 0, 2), (0, 0, 0, 4), (0, 2, 0, 4)]


def test_two_images_alone_are_compared_too() -> None:
    assert pairs(find(pictures([clouds(1)]), pictures([crop(clouds(1), 0, 0.1)]))) == [(0, 0, 1, 0)]
    assert not find(pictures([clouds(1)]), pictures([clouds(2)])).copies


def test_equal_images_are_no_near_copies() -> None:
    assert not find(pictures([clouds(1), clouds(2)]), pictures([clouds(2)])).copies


def test_a_grey_copy_of_a_coloured_image_is_found() -> None:
    grey = jpeg(clouds(4), 60)
    colour = np.stack([clouds(4), exposed(clouds(4), 0.9, 5), clouds(4)], axis=2)
    assert pairs(find(pictures([colour, np.stack([clouds(5)] * 3, axis=2)]), pictures([clouds(6), grey]))) == [
        (0, 0, 1, 1)
    ]


def test_what_has_no_contrast_is_listed_and_matches_nothing() -> None:
    flat, black = np.full((320, 320), 90, np.uint8), np.zeros((320, 320), np.uint8)
    framed = np.pad(flat[:, 30:-30], ((0, 0), (30, 30)))
    found = find(pictures([clouds(1), flat, framed]), pictures([black, clouds(2)]))
    assert found.blank == [[1, 2], [0]]
    assert not found.copies


def test_empty_groups_have_no_copies() -> None:
    nothing = Pictures(lambda rows: np.zeros((0, 320, 320, 1), np.uint8), [])
    assert pairs(find(nothing, pictures([clouds(1), jpeg(clouds(1))]), nothing)) == [(1, 0, 1, 1)]
    assert not find(nothing).copies


def test_the_order_of_the_groups_does_not_matter() -> None:
    a, b = pictures([clouds(i) for i in range(8)]), pictures([jpeg(clouds(3)), clouds(20), crop(clouds(5), 0.1, 0.1)])
    forward, backward = find(a, b).copies, find(b, a).copies
    assert [(copy.row, copy.other_row) for copy in forward] == [(3, 0), (5, 2)]
    assert [(copy.other_row, copy.row) for copy in backward] == [(3, 0), (5, 2)]
    assert find(a, b).copies == forward


def test_many_images_are_searched_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with hundreds of thousands: blocks, a few proposals of many, levels from a sample."""
    monkeypatch.setattr(near_copies, "_ROWS", 7)
    monkeypatch.setattr(near_copies, "_PROPOSED", 5)
    monkeypatch.setattr(near_copies, "_QUERIES", 3)
    monkeypatch.setattr(near_copies, "_READ", 4)
    originals = [clouds(i) for i in range(45)]
    copies = [crop(originals[i], 0.02, 0.08) for i in (0, 6, 7, 44)]
    assert pairs(find(pictures(originals), pictures(copies))) == [
        (0, 0, 1, 0),
        (0, 6, 1, 1),
        (0, 7, 1, 2),
        (0, 44, 1, 3),
    ]


def test_progress_reaches_its_total() -> None:
    said: dict[str, list[tuple[int, int]]] = {}
    groups = [pictures([clouds(i) for i in range(3)]), pictures([clouds(i) for i in range(5, 40)])]
    near_copies.find(groups, lambda what, done, total: said.setdefault(what, []).append((done, total)))
    assert said["describe"][-1] == (38, 38)
    assert said["compare"][-1] == (3 * 3 + 3 * 35 + 35 * 35,) * 2
    for steps in said.values():
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_correlation_is_1_for_one_picture_where_the_pose_is_right_and_near_0_for_two() -> None:
    a, b = clouds(1)[..., None], clouds(2)[..., None]
    here = Pose(1, 1, 0, 0)
    assert correlation(Details(a), Details(a), here) == pytest.approx(1, abs=1e-4)
    assert correlation(Details(a), Details(255 - a), here) < 0
    assert abs(correlation(Details(a), Details(b), here)) < 0.2
    # pixel p from the middle of the crop lies 0.9 p from the middle of the source, and 16 pixels up and left
    cut = Details(crop(clouds(1), 0, 0)[..., None])
    assert correlation(cut, Details(a), Pose(0.9, 0.9, -16, -16)) > 0.95
    assert correlation(cut, Details(a), Pose(0.92, 0.92, -13, -13)) > 0.95, "found from a neighbouring pose"
    assert correlation(cut, Details(a), Pose(1.1, 1.1, 16, 16)) < 0.3, "and not from a far one"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("block", [1, 4])
def test_block_means_are_means(block: int, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 320, 320, channels), dtype=np.uint8)
    side = 320 // block
    wanted = images.reshape(2, side, block, side, block, channels).mean(axis=(2, 4, 5))
    np.testing.assert_allclose(registration.block_means(images, block), wanted, rtol=1e-5)
