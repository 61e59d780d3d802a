"""RG2: a squared loss aligned with DCG, from the second-order expansion of the softmax loss.

The paper is Pu et al. 2024, "Learning-Efficient Yet Generalizable Collaborative Filtering for Item
Recommendation", ICML. Where each part of it is:

| paper | here |
|---|---|
| eq. 3: softmax over all items | `losses.softmax` |
| eq. 13: the loss of a pair, with all items or sampled ones | `losses.rg2`, `losses.rg2_sampled` |
| eq. 14: the weighted squared loss over all pairs | `solvers.rg2.objective` |
| algorithm 1: alternating least squares | `solvers.rg2.fit` |
| the closed form of its optimum | `solvers.rg2.decompose`, `solvers.rg2.solve`, `solvers.rg2.shrink` |
| Gauss-Newton for two towers | `solvers.gauss_newton.fit` |
| gradient training, also of LightGCN | `train.gram_objective`, `models.LightGCN` |
| baselines: WRMF, UIB, SML, Sparsemax | `solvers.wrmf.fit`, `losses.uib`, `losses.sml`, `losses.sparsemax` |
| tables 2 to 5, figure 2 | `benchmarks/studies/rg2.py` |

Differs: in the released code, the right-hand side of the items' step has a wrong sign, so it solves
another problem; `solvers.rg2` solves equation 22.
"""
