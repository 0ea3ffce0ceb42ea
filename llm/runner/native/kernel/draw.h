/* One row of scores to one token: greedy, or by a uniform number over the weights e^((x - top) / temperature).
 *
 *     nothing cut     the weights of each span are summed in id order, the span and then the id is found
 *     top-k, top-p    candidates above a bound that no kept token is below; counted and weighed on rungs of falling
 *                     value, of which only those are sorted on which the cuts and the draw fall
 *
 * float64, in one order of operations: a row's token hangs on the row alone. llm/sampler/draws.py is the oracle.
 */
#pragma once
#include "kernel.h"
#include "order.h"

#define INVALID (-1) /* the scores are no numbers, or none is above -inf */

/* Of a float64 in [0, 1): splitmix64 of (seed, choice, position). */
double uniform(uint64_t seed, uint32_t choice, uint32_t position);

int draw_token(const Slate *slate, const Scores *scores, const Sampling *sampling, double u);
