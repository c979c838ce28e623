"""The kernel distance between two sets of features (Binkowski et al., 2018), which a small set does not bias."""

from jaxtyping import Float32
from torch import Tensor

from dis_cli.metrics.inception_score import Spread

# torch-fidelity's, and the paper's.
NUM_SUBSETS = 100
SUBSET_SIZE = 1000
SUBSET_SEED = 2020


def subset_size_for(num_generated: int, num_reference: int) -> int:
    """The size of a subset of each set: the usual 1,000 images, or as many as there are."""
    return min(SUBSET_SIZE, num_generated, num_reference)


def facts(num_generated: int, num_reference: int) -> dict[str, object]:
    """The facts about the subsets, for results."""
    size = subset_size_for(num_generated, num_reference)
    return {"kid_subsets": {"number": NUM_SUBSETS, "size": size, "seed": SUBSET_SEED}}


def notes(generated: Float32[Tensor, "n d"], reference: Float32[Tensor, "m d"]) -> list[str]:
    """Notes on a distance over subsets that hold nearly everything."""
    size = subset_size_for(len(generated), len(reference))
    if size == SUBSET_SIZE:
        return []
    return [
        f"The kernel distance is over subsets of {size:,} images, nearly all there are: its spread means little "
        f"(papers: {SUBSET_SIZE:,} of many more)"
    ]


def kernel_distance(
    generated: Float32[Tensor, "n d"],
    reference: Float32[Tensor, "m d"],
    *,
    num_subsets: int = NUM_SUBSETS,
    subset_size: int | None = None,
    seed: int = SUBSET_SEED,
) -> Spread:
    """The unbiased squared MMD with the kernel ``(x . y / d + 1)^3``, over random subsets: KID with Inception features.

    torch-fidelity's own function, subsets and seed, on float32 features as it takes them, so that the value is its
    value; a small one may be negative.

    Args:
        generated: Features of the scored images.
        num_subsets: Number of pairs of subsets.
        subset_size: Images of each subset, drawn without replacement; None takes ``subset_size_for``.

    Raises:
        ValueError: A set has fewer images than a subset, or a subset fewer than 2.
    """
    size = subset_size_for(len(generated), len(reference)) if subset_size is None else subset_size
    if not 2 <= size <= min(len(generated), len(reference)):
        raise ValueError(
            f"subset_size must be 2 to the smaller set's {min(len(generated), len(reference))} images, got {size}"
        )
    # imported here because torchvision takes a second to load
    from torch_fidelity import metric_kid

    result = metric_kid.kid_features_to_metric(
        generated,
        reference,
        kid_subsets=num_subsets,
        kid_subset_size=size,
        rng_seed=seed,
        verbose=False,
    )
    return Spread(result[metric_kid.KEY_METRIC_KID_MEAN], result[metric_kid.KEY_METRIC_KID_STD])
