"""Time of whole networks: a training step, inference as it is and fused, and what a layer costs on top of its kernels."""

import numpy as np

from fastconv import nn

NETWORKS = {
    # name: (model, input)
    "lenet5, batch 64": (lambda: nn.lenet5(rng=0), (64, 1, 28, 28)),
    "small_vgg, batch 32": (lambda: nn.small_vgg(dropout=0, rng=0), (32, 3, 32, 32)),
    "resnet18, 224 x 224": (lambda: nn.resnet18(rng=0), (1, 3, 224, 224)),
    "mobilenet_v2, 224 x 224": (lambda: nn.mobilenet_v2(rng=0), (1, 3, 224, 224)),
}


class Network:
    """A network on random input."""

    params = tuple(NETWORKS)
    param_names = ("network",)

    def setup(self, network: str) -> None:
        """Build the model and its fused form, and compile the kernels."""
        make, shape = NETWORKS[network]
        rng = np.random.default_rng(0)
        self.x, self.labels = rng.standard_normal(shape, dtype=np.float32), rng.integers(0, 10, shape[0])
        self.model = make()
        self.optimizer = nn.SGD(self.model, lr=0.001, momentum=0.9)
        self.fused = self.model.fuse(shape)
        self.time_training_step(network)
        self.time_inference(network)

    def time_training_step(self, network: str) -> None:
        """Forward, loss, backward, SGD."""
        self.model.zero_grad()
        y, backprop = self.model.forward(self.x)
        backprop(nn.softmax_cross_entropy(y, self.labels)[1], input_gradient=False)
        self.optimizer.step()

    def time_inference(self, network: str) -> None:
        """Call the model."""
        self.model(self.x)

    def time_fused(self, network: str) -> None:
        """Call the fused model."""
        self.fused(self.x)


class Digits:
    """An epoch of `nn.fit` on the embedded digits."""

    def setup(self) -> None:
        """Build the model of `fastconv train`, and compile the kernels."""
        from fastconv.train.digits import digits_model

        self.x, self.y = nn.load_digits()
        self.model = digits_model()
        self.optimizer = nn.SGD(self.model, lr=0.01)
        self.time_epoch()

    def time_epoch(self) -> None:
        """Train for an epoch."""
        nn.fit(self.model, self.x, self.y, optimizer=self.optimizer, epochs=1, progress=False)
