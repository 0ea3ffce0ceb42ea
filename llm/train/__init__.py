"""Training: text and conversations in, a servable checkpoint out.

data         files → token ids and loss masks
batches      examples and text → batches by step number
packing      several conversations in one row
loss         cross entropy over the whole vocabulary, or over a sample of it
vocabulary   a small vocabulary to train with, a whole one to serve
attention    the scores written out, for CPUs; packed conversations kept apart
recompute    activations computed again instead of kept
schedule     how a model is trained, and the learning rate of each step
report       progress bar, JSONL log, loss curve
loop         optimiser, resumable steps, validation, the best step
shape        a model from scratch: families and sizes
shown        one example with its loss mask, before training starts
config_file  a run's flags as one file
options      the command-line flags both commands share
run          one run, from flags to a servable folder
pretrain     `python -m llm.train.pretrain`: a base model from text
sft          `python -m llm.train.sft`: an assistant from conversations
phrasing     the other ways a person may have asked
facts        `python -m llm.train.facts`: the default checkpoint's facts → chat JSONL
"""
