"""What can go wrong for a caller of the API."""


class ClientError(Exception):
    """Base of all that the client raises on purpose; `message` is fit for a user's eyes."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Unreachable(ClientError):
    """No answer came: nothing listens, the connection broke, or it took too long."""


class AwsError(ClientError):
    """The API refused. `code` is the AWS error code (or the native API's), `status` the HTTP status."""

    def __init__(self, code: str, message: str, request_id: str, status: int) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id
        self.status = status

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
