"""Items as candidates that all users share, as evaluation and recommendations score them."""

from torch import Tensor

from client_app.data.content import Content
from shared_model.model.mixture import Candidates
from shared_model.model.recommender import Recommender


def shared_candidates(
    model: Recommender, content: Content, items: Tensor, cold: Tensor
) -> Candidates:
    """Items [N] as candidates that all users share; ``cold`` [N] ones are scored by content."""
    ids = model.item_embedding.weight[items]
    shared = (ids, content.visual[items], content.text[items], cold, items)
    return Candidates(*(part[None] for part in shared))
