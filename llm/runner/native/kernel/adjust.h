/* What a row is drawn from: logits after penalties, bias, forbidden ends and grammar, then without the improbable.
 * In float32, in the order of llm/sampler/logits.py, which is the oracle to the bit. */
#pragma once
#include "kernel.h"
#include "order.h"

/* Whether row i is drawn from other scores than the model's. */
int is_adjusted(const Draws *draws, int i);

/* Row i of the draws up to min-p: (vocab_size,). */
void adjust_row(const Draws *draws, int i, float *adjusted);

/* min-p, on scores of `values`, whose top is finite. */
void cut_improbable(Scores *scores, float *values, float min_p);
