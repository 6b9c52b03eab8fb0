"""Parameters of prepare and validate."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mdpr.params.section import (
    Count,
    CountOrZero,
    Fraction,
    InputPath,
    Positive,
    Section,
    Seed,
    holds_login,
    is_address,
    offered,
)

# How an address is written in a setting, and where its login belongs.
PLACES = {
    "repo": ("https://HOST/NAME.git", "MDPR_GIT_USERNAME and MDPR_GIT_PASSWORD"),
    "root": ("s3://BUCKET/FOLDER", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or those of your store,"),
}


class PrepareParams(Section):
    """Source and long-tail protocol."""

    source: Literal[
        "embedded",
        "parquet",
        "folder",
        "csv",
        "cifar10",
        "cifar100",
        "imagenet_lt",
        "places_lt",
        "inat2018",
        "huggingface",
        "emblems",
    ] = Field(
        "embedded",
        description="embedded: the shipped Fashion-MNIST pool; parquet: pool.parquet and test.parquet with "
        "classes.json; folder: one folder per class, inside train/ and test/ (val/) if there are splits; csv: "
        "images.csv with the columns path, label and, if there are splits, split; cifar10, cifar100: the original "
        "python archive, fetched if missing; imagenet_lt, places_lt, inat2018: their list files; huggingface: "
        "hub_name; emblems: pictures drawn from `seed`, whose truth is known (root: any folder)",
        json_schema_extra=offered(),
    )
    root: InputPath = Field(
        "data/embedded/fashion-mnist",
        min_length=1,
        description="folder of the source, or its address in an object store, such as s3://bucket/folder, which is "
        "copied into a cache first (huggingface, cifar: keeps the download)",
        json_schema_extra=offered(
            text="Folder of the source, as the containers see it, or its address in an object store (s3://...); not "
            "used if data_repo is set"
        ),
    )
    image_root: str = Field("", description="folder that paths in list files start from; empty: root")
    repo: str = Field(
        "",
        description="Git repository (address or folder) whose DVC tracks the source: then `path` in it, not root",
        json_schema_extra=offered(
            "data_repo",
            "Git repository whose DVC tracks the source, without a login: that is in the Kubernetes secret mdpr-data",
        ),
    )
    rev: str = Field(
        "",
        description="commit, tag or branch of repo or hub_name; empty: its default branch as it is now",
        json_schema_extra=offered("data_rev"),
    )
    path: str = Field("", description="folder in repo that DVC tracks", json_schema_extra=offered("data_path"))
    hub_name: str = Field("", description="name of the data set on the Hugging Face Hub, or a folder (huggingface)")
    class_depth: CountOrZero = Field(
        1, description="folder: which folder below the root (or the split) is the class; 0: the innermost"
    )
    class_name_style: Literal["as_is", "spaces", "words"] = Field(
        "spaces",
        description="class names out of folders and labels: spaces: underscores become spaces; words: also "
        "001.CamelCase becomes Camel Case; as_is: unchanged (names.csv or classes.json names them one by one)",
    )
    follow_links: bool = Field(False, description="read what lies outside the root through symbolic links")
    emblems: Literal["absent", "foreign"] = Field(
        "foreign",
        description="emblems: what pictures hide: absent: each attribute in 35 % of them; foreign: fewer absent, but "
        "mark, tool and scene of another class, with a cue, in 30 % each",
    )
    profile: Literal["exponential", "step", "pareto", "natural"] = Field(
        "exponential",
        description="exponential: cut n_c = n_max * (1/IR)^(c/(C-1)); step: one half of the classes n_max, the other "
        "n_max / IR; pareto: a power law between the two; natural: take all there is",
    )
    imbalance_ratio: float = Field(100, ge=1, description="IR, largest over smallest class (not natural)")
    pareto_power: Positive = Field(6, description="exponent of the power law (pareto); larger: closer to exponential")
    max_images_per_class: Count = Field(1000, description="n_max, images of the largest class (not natural)")
    class_order: Literal["given", "shuffled", "by_count"] = Field(
        "given", description="which class is the largest: the first, one drawn by seed, or the one with most images"
    )
    val_from: Literal["left_over", "train_share"] = Field(
        "left_over",
        description="validation if the source has none: left_over: balanced, from what the cut leaves; "
        "train_share: at most 20 % of each class's training images (always so for natural)",
    )
    val_images_per_class: Count = Field(
        200, description="images per class for validation: what left_over takes, and the most of a set cut by order"
    )
    val_share: float = Field(
        0.2, gt=0, lt=1, description="share of training images for validation, of sets cut by content (not left_over)"
    )
    test_from: Literal["source", "val", "share"] = Field(
        "source",
        description="test set: source: the source's own, or a share if it has none; val: its validation split; share: "
        "a share of each class's training images",
    )
    test_share: float = Field(
        0.2, gt=0, lt=1, description="share of each class that becomes the test set if the source has none"
    )
    cut_by: Literal["auto", "content", "order"] = Field(
        "auto",
        description="what decides which split an image is in: content: its own pixels, so that it stays when others "
        "come and go; order: its place, as published cuts are defined; auto: order for published and shipped sets",
    )
    near_duplicate_bits: int = Field(
        2,
        ge=0,
        le=15,
        description="content: pictures whose perceptual hashes of 64 bits differ by at most this share a split",
    )
    previous: str = Field(
        "",
        description="an earlier version, whose images keep their splits (content) and are counted in card.json: a "
        "folder of prepared data, or a Git revision of this project, whose data/prepared DVC tracks",
    )
    many_above: Count = Field(100, description="many-shot: more training images than this")
    few_below: Count = Field(20, description="few-shot: fewer training images than this; medium lies between")
    shots_from: float | None = Field(
        None, ge=1, description="imbalance ratio whose counts decide the shot groups; empty: the real counts"
    )
    min_images_per_class: CountOrZero = Field(
        0, description="classes with fewer images are small, and those that cannot be split"
    )
    small_classes: Literal["refuse", "drop", "train_only"] = Field(
        "refuse", description="small classes: stop, leave them out, or use them for training only"
    )
    drop_duplicates: bool = Field(
        False, description="leave out an image whose pixels came before (test first, then validation)"
    )
    background: str = Field(
        "white",
        pattern=r"^(white|black|gray|#[0-9a-fA-F]{6})$",
        description="what transparent images are laid on: white, black, gray or #RRGGBB",
    )
    short_side_px: CountOrZero = Field(
        0, description="scale larger images down to this short side, as JPEG of quality 95; 0: bytes as they are"
    )
    skip_bad: bool = Field(
        False, description="leave out images and rows that cannot be used, and list them in card.json"
    )
    seed: Seed = Field(0, description="seed of the cut")

    @field_validator("repo", "root")
    @classmethod
    def _no_login(cls, place: str, info: ValidationInfo) -> str:
        """Settings are written down everywhere: in params.yaml, dvc.lock, MLflow, Kubeflow."""
        named, variables = PLACES[str(info.field_name)]
        try:
            urlsplit(place)
        except ValueError:
            raise ValueError(f"must be an address, {named}, or a folder") from None
        if holds_login(place):
            raise ValueError(
                f"must not hold a login, which would be recorded with the settings: set {variables} in the environment"
            )
        return place

    @model_validator(mode="after")
    def _settings_agree(self) -> PrepareParams:
        if self.few_below > self.many_above:
            raise ValueError(f"few_below = {self.few_below} must not exceed many_above = {self.many_above}")
        if self.shots_from is not None and self.profile == "natural":
            raise ValueError("shots_from is the ratio of a cut, and profile = natural cuts nothing: leave it empty")
        if self.source == "huggingface" and not self.hub_name:
            raise ValueError("source = huggingface needs hub_name, the name of the data set")
        if bool(self.repo) != bool(self.path):
            raise ValueError("repo and path go together: the repository, and the folder in it that DVC tracks")
        if self.rev and not self.repo and self.source != "huggingface":
            raise ValueError("rev is a revision of repo or of hub_name: set repo and path, or source = huggingface")
        if self.repo and self.source in ("embedded", "huggingface", "emblems"):
            raise ValueError(f"source = {self.source} does not come from a repository: leave repo empty")
        if is_address(self.root) and self.source in ("huggingface", "emblems", "cifar10", "cifar100"):
            raise ValueError(f"source = {self.source} does not come from an object store: root must be a folder")
        if is_address(self.image_root):
            raise ValueError("image_root must be a folder: in an object store images lie below root")
        return self


class ValidateParams(Section):
    """The limits of a usable data set (Great Expectations)."""

    min_side_px: Count = Field(16, description="shortest side an image may have")
    max_side_px: Count = Field(8192, description="longest side an image may have")
    profile_tolerance: Fraction = Field(
        0.02, description="how far the real imbalance ratio may lie from the declared one, as a fraction"
    )
    near_duplicates: Literal["off", "warning", "error"] = Field(
        "warning", description="an image of val or test that looks like one of an earlier split (perceptual hash)"
    )
    near_duplicate_bits: int = Field(
        2, ge=0, le=15, description="largest difference of two perceptual hashes of 64 bits that counts as alike"
    )
