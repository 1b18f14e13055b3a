"""Herding: samples whose mean follows the pool's. MaxHerding: samples that cover it well, where nearer is better."""

import torch
from torch import Tensor

from common.progress import progress_bar
from data_selection.activeft.pool import Pool, chunks, rows_at_a_time

BLOCK = 1024  # rows and columns of similarities that stay in a processor's cache
FIRST_PORTION = 8  # candidates examined together at first, then twice as many each time
TIE = 1e-5  # relative difference that rounding may make between equal gains, with sigma 1


def herding_samples(pool: Pool, k: int, seed: int) -> list[int]:
    """Herding (Welling, ICML 2009, eq. 5 and 6), on the features themselves.

    With mu the pool's mean, w_0 = mu: choose x_t = argmax w_{t-1} . x, then w_t = w_{t-1} + mu - x_t. On unit rows this
    is the sample that brings the mean of all chosen nearest to mu. Labelled samples count as chosen first. The seed has
    no effect.

    Returns: k distinct indices, in the order chosen.
    """
    features = pool.rows
    mean = features.mean(dim=0)  # (d,)
    labeled = features[list(pool.candidates.labeled)]  # (m, d)
    weight = (1 + len(labeled)) * mean - labeled.sum(dim=0)
    closed = pool.closed()
    chosen: list[int] = []
    for _ in progress_bar(range(k), desc="herding"):
        best = int((features @ weight).masked_fill_(closed, -torch.inf).argmax())  # (n, d) x (d,) -> (n,)
        chosen.append(best)
        closed[best] = True
        weight += mean - features[best]
    return chosen


def maxherding_samples(pool: Pool, k: int, seed: int, sigma: float = 1.0) -> list[int]:
    """MaxHerding (Bae et al., ECCV 2024): always choose the sample that adds most to the pool's generalised coverage.

    The coverage is the mean over the pool of the greatest similarity exp(-(|x_i - x| / sigma)^2) to a chosen x. With
    m_i the greatest so far, 0 at the start, x gains sum_i max(exp(-(|x_i - x| / sigma)^2) - m_i, 0). Labelled samples
    are chosen first. Nested: the first samples are the choice for a smaller budget. Equal gains are common (duplicates,
    or two samples that only add to the coverage of each other): the first index wins.

    (departure) The authors draw 35,000 candidates at random; here all are considered, exactly. Gains only fall, so a
    gain from an earlier turn is an upper bound: only candidates whose bound is above the best gain are recomputed.
    The seed has no effect.

    Returns: k distinct indices, in the order chosen.
    """
    features, n = pool.rows, pool.n
    portion, tie = rows_at_a_time(n), TIE * max(1, 1 / sigma**2)
    covered = features.new_zeros(n)  # m_i

    def similarity(samples: Tensor | slice, others: slice = slice(None)) -> Tensor:
        # |a - b|^2 = 2 - 2 a . b
        products = features[samples] @ features[others].T  # (c, d) x (d, o) -> (c, o)
        return products.sub_(1).mul_(2 / sigma**2).exp_()

    def gains_of(samples: Tensor) -> Tensor:
        blocks = chunks(n, max(BLOCK, BLOCK**2 // len(samples)))
        return sum(similarity(samples, block).sub_(covered[block]).clamp_min_(0).sum(dim=1) for block in blocks)

    for some in torch.tensor(pool.candidates.labeled, dtype=torch.int64, device=features.device).split(portion):
        if len(some):
            torch.maximum(covered, similarity(some).amax(dim=0), out=covered)
    closed = pool.closed()
    bounds = torch.zeros_like(covered)
    blocks = [*chunks(n, BLOCK)]
    for number, block in enumerate(progress_bar(blocks, desc="gains")):
        for other in blocks[number:]:  # similarity is symmetric
            both = similarity(block, other)
            bounds[block] += (both - covered[other]).clamp_min_(0).sum(dim=1)
            if other != block:
                bounds[other] += both.sub_(covered[block, None]).clamp_min_(0).sum(dim=0)
    bounds[closed] = -torch.inf
    gained = ~closed  # whether the bound is the gain itself
    chosen: list[int] = []
    for _ in progress_bar(range(k), desc="covering"):
        looked_at = FIRST_PORTION
        while True:
            enough = bounds.masked_fill(~gained, -torch.inf).max() * (1 - tie)
            promising = bounds.masked_fill(gained, -torch.inf).topk(min(looked_at, n))
            some = promising.indices[promising.values.isfinite() & (promising.values >= enough)]
            if not len(some):
                break
            bounds[some] = gains_of(some)
            gained[some] = True
            looked_at = min(2 * looked_at, portion)
        chosen.append(int((bounds >= enough).nonzero()[0]))
        newest = torch.tensor(chosen[-1:], device=features.device)
        torch.maximum(covered, similarity(newest)[0], out=covered)
        bounds[newest] = -torch.inf
        torch.eq(bounds, 0, out=gained)  # a gain cannot fall below 0
    return chosen
