"""What other trainers call our fields.

Promise: someone who comes from transformers, nanoGPT, torchtitan, Megatron or Lightning and writes
a name from there is told ours. Trap avoided: a name that means something else there (batch_size
counts sequences, ours tokens) would be taken over with its value, so what ours means is said too.
"""

import re

_NAMES: dict[str, str] = {
    "spec.training.optimizer.learningRate": "lr, maxLr, peakLr, baseLr, stepSize",
    "spec.training.optimizer.weightDecay": "wd, l2, decay",
    "spec.training.optimizer.beta1": "adamBeta1",
    "spec.training.optimizer.beta2": "adamBeta2",
    "spec.training.optimizer.epsilon": "eps, adamEpsilon, adamEps",
    "spec.training.optimizer.name": "optim, optimizerType",
    "spec.training.schedule.name": "lrScheduler, lrSchedulerType, lrDecayStyle, scheduler",
    "spec.training.schedule.warmupFraction": "warmup, warmupSteps, warmupRatio, warmupIters",
    "spec.training.schedule.finalFraction": "minLr, minLrRatio",
    "spec.training.batchTokens": "batchSize, globalBatchSize, localBatchSize, microBatchSize, "
    "trainBatchSize, perDeviceTrainBatchSize, perDeviceBatchSize",
    "spec.training.gradientAccumulation": "gradientAccumulationSteps, accumulateGradBatches, "
    "gradAccum, gradAccumSteps, accumulationSteps",
    "spec.training.gradientClipNorm": "gradClip, clipGrad, maxNorm, maxGradNorm, gradClipNorm, "
    "gradientClipVal, clipGradNorm",
    "spec.training.budget.steps": "maxSteps, maxIters, trainIters, numSteps, trainSteps, "
    "trainingSteps, totalSteps, iterations, iters",
    "spec.training.budget.epochs": "numEpochs, maxEpochs, numTrainEpochs, trainEpochs",
    "spec.training.budget.tokens": "maxTokens, trainTokens, totalTokens",
    "spec.training.evaluation.everySteps": "evalSteps, evalInterval, evalEvery, valInterval, "
    "valCheckInterval",
    "spec.training.evaluation.sequences": "evalIters, limitValBatches",
    "spec.training.seed": "randomSeed, manualSeed",
    "spec.model.config.hiddenSize": "nEmbd, dModel, dim, hiddenDim, embedDim, nEmbed, width, "
    "embeddingSize",
    "spec.model.config.layers": "nLayer, nLayers, numLayers, numHiddenLayers, depth",
    "spec.model.config.heads": "nHead, nHeads, numHeads, numAttentionHeads, attentionHeads",
    "spec.model.config.architecture": "modelType, arch",
    "spec.model.pretrained.uri": "modelNameOrPath, modelName, baseModel, modelPath, initFrom, "
    "fromPretrained",
    "spec.data.sequenceLength": "blockSize, seqLen, seqLength, maxSeqLen, maxSeqLength, "
    "maxLength, contextLength, contextSize, nCtx, nPositions, maxPositionEmbeddings",
    "spec.data.train": "dataset, datasets, dataPath, trainFile, trainFiles, trainData",
    "spec.data.validation": "evalData, validData, valData, validationFile, testFile",
    "spec.data.tokenizer.vocabSize": "vocab, vocabularySize",
    "spec.precision.compute": "dtype, torchDtype, mixedPrecision, amp, bf16, fp16",
    "spec.parallelism.layout": "strategy, fsdp, ddp, zero",
    "spec.workers.replicas": "nodes, numNodes, nnodes, numWorkers",
    "spec.workers.ranksPerReplica": "nprocPerNode, procPerNode, tasksPerNode",
    "spec.workers.accelerator.count": "gpus, numGpus, nGpus, gpusPerNode, devices",
    "spec.workers.resources.cpu": "cpus, numCpus",
    "spec.workers.resources.memory": "mem, ram",
    "spec.checkpoint.everySteps": "saveSteps, saveInterval, saveEvery, checkpointInterval, "
    "checkpointEvery, everyNTrainSteps",
    "spec.checkpoint.keepLast": "saveTotalLimit, keepLatestK, saveTopK",
    "spec.checkpoint.path": "outputDir, outDir, saveDir, checkpointDir, defaultRootDir",
}


def _plain(name: str) -> str:
    """n_embd, n-embd and nEmbd are one name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


#: The path of our field by the plain form of a name from elsewhere.
PATH_OF_SYNONYM: dict[str, str] = {
    _plain(name): path for path, names in _NAMES.items() for name in names.split(", ")
}


def path_meant(name: str) -> str | None:
    """The path of the field that another trainer calls so; None for a name of nobody's."""
    return PATH_OF_SYNONYM.get(_plain(name))
