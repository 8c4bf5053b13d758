"""The same work as the best users of other frameworks would write it.

Each module has a function for a row. It takes a `bench.problem.Problem` and gives the ways by name, each a callable
without arguments that does the row's work once and returns what `numpy.asarray` accepts, finished (no pending work):

=====================  ======================================================================================
train                  one step of full-batch Adam (lr 1e-3) on the mean squared error, all parameters, exact GELU;
                       returns the loss *before* the step. Each way keeps its own parameters and moments
expert_jacobians       dy/dx of every expert at every token, without gates, (E, n, d, d), or E arrays (n, d, d)
moe_jacobian           dy/dx of the whole layer, through the gates (fixed choice) and the experts, (n, d, d)
mean_jacobians         sum_n gates_ne J_e(x_n) / sum_n gates_ne, (E, d, d), by autodiff; gates are constants here
mean_jacobians_closed  the same by the closed form W2 diag(mean slope) W1, typed into the framework
leading_values         largest singular value of every expert's Jacobian at every token, to 1e-6, (E, n)
full_spectra           all singular values of every expert's Jacobian at every token, (E, n, d), descending
weighted_pca           eigenvalues of every expert's covariance of x weighted by its gates, about the weighted
                       mean, divided by sum of weights, (E, d), descending
=====================  ======================================================================================

What a user would do once (compiling, moving weights over) is done when the way is made or in its first call, outside
the timing; what depends on x or on the weights' values is done in every call.
"""
