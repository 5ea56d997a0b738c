"""Item 2.1: the variational autoencoder, and the two pairs of networks it is built from.

The encoder turns an image into a diagonal Gaussian over codes, q(z|x) = N(mu, diag e^logvar); the decoder turns a code
into the mean of a Gaussian over images, p(x|z) = N(recon, sigma^2 I). The reparameterization z = mu + sigma_z * epsilon
makes a draw from the first a differentiable input of the second (Kingma & Welling 2014, section 2.4).
"""

import torch
from torch import nn
from torch.nn import functional

IMAGE_SHAPE = (1, 28, 28)
PIXELS = 28 * 28
WIDTH = 384  # of the residual layers next to the code
MAX_MEAN = 10.0  # standard deviations of the prior, which bounds a code's mean: see `VAE.encode`
MAX_LOGVAR = 3.0  # bound of a code's log-variance; the prior has 0
MEAN_SPREAD = 4.0  # of the means of codes at first, times torch's default for K = 1


class Residual(nn.Module):
    """Two linear layers whose output is added to their input, both of shape (B, WIDTH); at first they add nothing.

    Signal and gradient pass it unweakened (He et al. 2016), so that depth next to the code costs no stability.
    """

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        """Return x plus what the layers make of it."""
        return x + self.layers(x)


def to_posterior(latent_dim):
    """The encoders' last layers: from (B, WIDTH) to the code's mean and log-variance, (B, 2K)."""
    return Residual(), nn.SiLU(), nn.Linear(WIDTH, 2 * latent_dim)


def from_code(latent_dim):
    """The decoders' first layers: from a code (B, K) to (B, WIDTH)."""
    return nn.Linear(latent_dim, WIDTH), Residual(), nn.SiLU()


def conv_encoder(latent_dim):
    """Convolutional encoder.

    The image is folded to four channels of 14x14 (`PixelUnshuffle`), a quarter of the places for a filter to visit, and
    the decoder unfolds its output the same way (`PixelShuffle`, Shi et al. 2016). 1x1 convolutions narrow the channels
    where they meet linear layers: a linear layer's weights grow with them.
    """
    return nn.Sequential(
        nn.PixelUnshuffle(2),  # (4, 14, 14)
        nn.Conv2d(4, 32, kernel_size=3, padding=1),
        nn.SiLU(),
        nn.Conv2d(32, 32, kernel_size=3, padding=1),
        nn.SiLU(),
        nn.Conv2d(32, 64, kernel_size=3, stride=2, padding=1),  # (64, 7, 7)
        nn.SiLU(),
        nn.Conv2d(64, 16, kernel_size=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, WIDTH),
        *to_posterior(latent_dim),
    )


def conv_decoder(latent_dim):
    """Convolutional decoder."""
    return nn.Sequential(
        *from_code(latent_dim),
        nn.Linear(WIDTH, 16 * 7 * 7),
        nn.SiLU(),
        nn.Unflatten(1, (16, 7, 7)),
        nn.Conv2d(16, 64, kernel_size=1),
        nn.SiLU(),
        nn.Conv2d(64, 64, kernel_size=3, padding=1),
        nn.SiLU(),
        nn.Conv2d(64, 4 * 32, kernel_size=3, padding=1),
        nn.PixelShuffle(2),  # (32, 14, 14)
        nn.SiLU(),
        nn.Conv2d(32, 32, kernel_size=3, padding=1),
        nn.SiLU(),
        nn.Conv2d(32, 4, kernel_size=3, padding=1),
        nn.PixelShuffle(2),  # (1, 28, 28)
    )


def mlp_encoder(latent_dim):
    """Fully connected encoder (item 2.5)."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(PIXELS, 768), nn.SiLU(), nn.Linear(768, WIDTH), *to_posterior(latent_dim)
    )


def mlp_decoder(latent_dim):
    """Fully connected decoder (item 2.5)."""
    return nn.Sequential(
        *from_code(latent_dim),
        nn.Linear(WIDTH, 768),
        nn.SiLU(),
        nn.Linear(768, PIXELS),
        nn.Unflatten(1, IMAGE_SHAPE),
    )


# name: functions of the latent size, to an encoder (B, 1, 28, 28) -> (B, 2K) and to a decoder (B, K) -> (B, 1, 28, 28)
ARCHITECTURES = {"conv": (conv_encoder, conv_decoder), "mlp": (mlp_encoder, mlp_decoder)}


def _initialize(layer):
    """Draw a convolution's weights so that they about keep a signal's size (He et al. 2015, derived for ReLU).

    With torch's default, which shrinks it, some trainings ended with a code that is ignored
    (figures/evidence/tried.md). Residual layers start as the identity.
    """
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    elif isinstance(layer, Residual):
        nn.init.zeros_(layer.layers[-1].weight)
        nn.init.zeros_(layer.layers[-1].bias)


class VAE(nn.Module):
    """Variational autoencoder for 28x28 images with values in [0, 1].

    Parameters
    ----------
    latent_dim : int
        K, the number of latent dimensions.
    architecture : str
        A name in `ARCHITECTURES`, "conv" or "mlp"; or the encoder's and the decoder's, as in "conv-mlp".

    Attributes
    ----------
    sigma : torch.Tensor, scalar buffer
        The decoder's standard deviation for every pixel; 1 until training calibrates it, saved with the weights.
    mean_logits : torch.Tensor, buffer (1, 28, 28)
        Added to the decoder's output before the sigmoid: training sets it so that the first images are the mean
        training image instead of grey; 0 until then, saved with the weights.

    Raises
    ------
    ValueError
        If `latent_dim` is not a positive integer or the architecture is unknown.
    """

    def __init__(self, latent_dim=2, architecture="conv"):
        super().__init__()
        integer = hasattr(latent_dim, "__index__") and not isinstance(latent_dim, bool)  # numpy's integers too
        if not integer or latent_dim < 1:
            raise ValueError(f"latent_dim must be a positive integer, not {latent_dim!r}")
        halves = str(architecture).split("-")
        if len(halves) > 2 or not set(halves) <= set(ARCHITECTURES):
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, not {architecture!r}")
        self.latent_dim = int(latent_dim)
        self.architecture = architecture
        self.encoder = ARCHITECTURES[halves[0]][0](self.latent_dim)
        self.decoder = ARCHITECTURES[halves[-1]][1](self.latent_dim)
        self.apply(_initialize)
        with torch.no_grad():  # codes start about as far from each other whatever K: few dimensions need larger means
            self.encoder[-1].weight[: self.latent_dim] *= MEAN_SPREAD / self.latent_dim**0.5
        self.register_buffer("sigma", torch.tensor(1.0))
        self.register_buffer("mean_logits", torch.zeros(IMAGE_SHAPE))

    def encode(self, x):
        """Return mu and logvar, (B, K) each, of q(z|x) for x of shape (B, 1, 28, 28), (B, 28, 28) or (B, 784).

        |mu| is below `MAX_MEAN` and logvar below `MAX_LOGVAR`: without bounds the KL of a single image can be all that
        training, or a mean over images, sees. Both bounds are smooth: a code near one can come back.
        Raises `ValueError` for any other shape, and if there is no image.
        """
        if x.shape[1:] not in {IMAGE_SHAPE, IMAGE_SHAPE[1:], (PIXELS,)} or len(x) == 0:
            raise ValueError(f"x must be (B, 1, 28, 28), (B, 28, 28) or (B, 784) with B > 0, not {tuple(x.shape)}")
        # Under autocast the networks compute in bfloat16; what follows them keeps the precision of x.
        mu, logvar = self.encoder(x.reshape(-1, *IMAGE_SHAPE)).to(x.dtype).chunk(2, dim=1)
        return MAX_MEAN * torch.tanh(mu / MAX_MEAN), MAX_LOGVAR - functional.softplus(MAX_LOGVAR - logvar)

    def reparameterize(self, mu, logvar):
        """Draw z ~ N(mu, diag e^logvar), (B, K), as a differentiable function of both."""
        return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)

    def decode(self, z):
        """Return the means of p(x|z), (B, 1, 28, 28) in [0, 1], for codes z of shape (B, K)."""
        return torch.sigmoid(self.decoder(z).to(z.dtype) + self.mean_logits)

    def forward(self, x):
        """Return a reconstruction of x, in its shape, from one draw of its code, with that code's mu and logvar."""
        mu, logvar = self.encode(x)
        recon_x = self.decode(self.reparameterize(mu, logvar))
        return recon_x.view(x.shape), mu, logvar
