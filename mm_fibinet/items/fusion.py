"""The fusions by name: modality features to one embedding an item.

Those of FUSIONS need the features alone; those of CLICK_FUSIONS learn from training clicks besides. A further one is a
function and one more entry here.
"""

from collections.abc import Callable

from mm_fibinet.items.features import Features
from mm_fibinet.items.linear import Fused, cca, mean, pca, pca_per_modality, whiten

FUSIONS: dict[str, Callable[[dict[str, Features], int, int], Fused]] = {
    "pca": pca,
    "pca_per_modality": pca_per_modality,
    "whiten": whiten,
    "cca": cca,
    "mean": mean,
}
