"""What several test files share."""

import jax
import optax


def adam(rate, **decays):
    """Adam under standard promotion: optax raises an int32 count to a float power, which strict promotion refuses."""
    tx = optax.adam(rate, **decays)

    def update(gradients, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(gradients, state, params)

    return optax.GradientTransformation(tx.init, update)


TX = adam(0.03)
