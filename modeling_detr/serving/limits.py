"""What a server accepts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a server accepts; whatever exceeds it is refused with a message.

    Attributes:
        max_bytes: Bytes of the body of a request.
        max_pixels: Width times height of an image, read in its header before it is decoded.
        max_images: Images in a request.
        queue_size: Images that are accepted and not answered yet, of all requests.
        timeout: Seconds in which a request must be received, and again in which it must be answered.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 64_000_000
    max_images: int = 16
    queue_size: int = 64
    timeout: float = 30.0

    @property
    def max_buffered_bytes(self) -> int:
        """Bytes of all bodies that are in memory."""
        return max(4 * self.max_bytes, 256_000_000)
