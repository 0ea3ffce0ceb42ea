/* Log probabilities of one row: x - top - ln Σ e^(x - top), a rank, the best. llm/sampler/logprobs.py is the oracle. */
#pragma once
#include "kernel.h"
#include "order.h"

/* Answers question i; its rank stays 0 when the row is no numbers or has fewer above -inf than are asked for. */
void measure_row(const Questions *questions, int i, const Slate *slate);
