"""Item 2.1: the variational autoencoder, with convolutional or with fully connected layers.

The encoder turns an image into a diagonal Gaussian over codes, q(z|x) = N(mu, diag e^logvar). The decoder turns a code
into the mean of a Gaussian over images, p(x|z) = N(recon_x, sigma^2 I). The reparameterization
z = mu + e^(logvar / 2) * epsilon makes a draw from the first a differentiable input of the second
(Kingma & Welling 2014, section 2.4).
"""

import torch
from torch import nn
from torch.nn import functional

IMAGE_SHAPE = (1, 28, 28)
PIXELS = 28 * 28
WIDTH = 384  # units of the residual layers
HIDDEN = 768  # units of the fully connected network's widest layers
MAX_MEAN = 10.0  # bound of a code's mean, in standard deviations of the prior
MAX_LOGVAR = 3.0  # bound of a code's log-variance; that of the prior is 0
MEAN_SPREAD = 4.0  # factor on torch's first weights of the codes' means at K = 1


class Residual(nn.Module):
    """Two linear layers whose output is added to their input, both of shape (B, WIDTH).

    Signal and gradient pass it unweakened (He et al. 2016), so that more layers stay trainable.
    """

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        """Return x plus the output of the layers."""
        return x + self.layers(x)


def to_posterior(latent_dim):
    """Return the last layers of an encoder: from (B, WIDTH) to mean and log-variance of the code, (B, 2K)."""
    return Residual(), nn.SiLU(), nn.Linear(WIDTH, 2 * latent_dim)


def from_code(latent_dim):
    """Return the first layers of a decoder: from a code (B, K) to (B, WIDTH)."""
    return nn.Linear(latent_dim, WIDTH), Residual(), nn.SiLU()


def convolution(inputs, outputs, size=3, stride=1):
    """Return a convolution, which keeps the image's size if its stride is 1, and the nonlinearity after it."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2), nn.SiLU()


def conv_encoder(latent_dim):
    """Return the convolutional encoder.

    `PixelUnshuffle` folds the image to four channels of 14x14, so that a filter visits four times fewer places. The
    decoder unfolds its output in the same way (`PixelShuffle`, Shi et al. 2016). Where channels meet a linear layer,
    a 1x1 convolution reduces their number, because the weights of a linear layer grow with it.
    """
    return nn.Sequential(
        nn.PixelUnshuffle(2),  # (4, 14, 14)
        *convolution(4, 32),
        *convolution(32, 32),
        *convolution(32, 64, stride=2),  # (64, 7, 7)
        *convolution(64, 16, size=1),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, WIDTH),
        *to_posterior(latent_dim),
    )


def conv_decoder(latent_dim):
    """Return the convolutional decoder."""
    return nn.Sequential(
        *from_code(latent_dim),
        nn.Linear(WIDTH, 16 * 7 * 7),
        nn.SiLU(),
        nn.Unflatten(1, (16, 7, 7)),
        *convolution(16, 64, size=1),
        *convolution(64, 64),
        nn.Conv2d(64, 4 * 32, kernel_size=3, padding=1),
        nn.PixelShuffle(2),  # (32, 14, 14)
        nn.SiLU(),
        *convolution(32, 32),
        nn.Conv2d(32, 4, kernel_size=3, padding=1),
        nn.PixelShuffle(2),  # (1, 28, 28)
    )


def mlp_encoder(latent_dim, hidden=HIDDEN):
    """Return the fully connected encoder (item 2.5)."""
    image_to_width = nn.Flatten(), nn.Linear(PIXELS, hidden), nn.SiLU(), nn.Linear(hidden, WIDTH)
    return nn.Sequential(*image_to_width, *to_posterior(latent_dim))


def mlp_decoder(latent_dim, hidden=HIDDEN):
    """Return the fully connected decoder (item 2.5)."""
    width_to_image = nn.Linear(WIDTH, hidden), nn.SiLU(), nn.Linear(hidden, PIXELS), nn.Unflatten(1, IMAGE_SHAPE)
    return nn.Sequential(*from_code(latent_dim), *width_to_image)


# name: functions that make, for K, an encoder (B, 1, 28, 28) -> (B, 2K) and a decoder (B, K) -> (B, 1, 28, 28)
ARCHITECTURES = {"conv": (conv_encoder, conv_decoder), "mlp": (mlp_encoder, mlp_decoder)}


class VAE(nn.Module):
    """Variational autoencoder for images of 28x28 pixels with values in [0, 1].

    Parameters
    ----------
    latent_dim : int
        K, the number of latent dimensions.
    architecture : str
        A name in `ARCHITECTURES`: "conv" or "mlp".

    Attributes
    ----------
    sigma : torch.Tensor, scalar buffer
        Standard deviation of the decoder, the same for every pixel. It is 1 until training calibrates it, and saved
        with the weights.
    mean_logits : torch.Tensor, buffer (1, 28, 28)
        Added to the decoder's output before the sigmoid. Training sets it so that the first reconstructions are the
        mean training image instead of grey.

    Raises
    ------
    ValueError
        If `latent_dim` is less than 1 or the architecture is unknown.
    """

    def __init__(self, latent_dim=2, architecture="conv"):
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, not {latent_dim}")
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, not {architecture!r}")
        self.latent_dim = int(latent_dim)
        self.architecture = architecture
        make_encoder, make_decoder = ARCHITECTURES[architecture]
        self.encoder = make_encoder(self.latent_dim)
        self.decoder = make_decoder(self.latent_dim)
        self.register_buffer("sigma", torch.tensor(1.0))
        self.register_buffer("mean_logits", torch.zeros(IMAGE_SHAPE))
        self._initialize()
        self.to(memory_format=torch.channels_last)  # fastest on a CPU; flatten weights by reshape, not view

    @torch.no_grad()
    def _initialize(self):
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                # Keeps a signal's size (He et al. 2015). Under torch's default, which shrinks it, some trainings ended
                # with a code that the decoder ignores.
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, Residual):
                nn.init.zeros_(layer.layers[-1].weight)  # at first the layers add nothing
                nn.init.zeros_(layer.layers[-1].bias)
        # With few dimensions the means start further apart, so that codes are about as far from each other whatever K.
        self.encoder[-1].weight[: self.latent_dim] *= MEAN_SPREAD / self.latent_dim**0.5

    def encode(self, x):
        """Return mu and logvar of q(z|x), each of shape (B, K), for x of shape (B, 1, 28, 28), (B, 28, 28) or (B, 784).

        |mu| is at most `MAX_MEAN` and logvar at most `MAX_LOGVAR`. Without these smooth bounds a single image can have
        a KL so large that training, or a mean over test images, sees nothing else.

        Raises `ValueError` for any other shape, and if there is no image.
        """
        if x.shape[1:] not in (IMAGE_SHAPE, IMAGE_SHAPE[1:], (PIXELS,)) or x.shape[0] == 0:
            raise ValueError(f"x must be (B, 1, 28, 28), (B, 28, 28) or (B, 784) with B > 0, not {tuple(x.shape)}")
        mu, logvar = self.encoder(x.reshape(-1, *IMAGE_SHAPE)).chunk(2, dim=1)
        return MAX_MEAN * torch.tanh(mu / MAX_MEAN), MAX_LOGVAR - functional.softplus(MAX_LOGVAR - logvar)

    def reparameterize(self, mu, logvar):
        """Draw z ~ N(mu, diag e^logvar) for mu and logvar of shape (B, K), as a differentiable function of both."""
        return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)

    def decode(self, z):
        """Return the means of p(x|z), shape (B, 1, 28, 28) in [0, 1], for codes z of shape (B, K)."""
        return torch.sigmoid(self.decoder(z) + self.mean_logits)

    def forward(self, x):
        """Return a reconstruction of x, in its shape, from one draw of its code, and that code's mu and logvar."""
        mu, logvar = self.encode(x)
        recon_x = self.decode(self.reparameterize(mu, logvar))
        return recon_x.view(x.shape), mu, logvar
