"""What S3's operations need permission for: actions are not all called as the operations are."""

from collections.abc import Mapping, Sequence

from hutch.api.gateway.operation import Access, AccessRule, Request

_ON_BUCKET = {
    "CreateBucket": "s3:CreateBucket",
    "DeleteBucket": "s3:DeleteBucket",
    "HeadBucket": "s3:ListBucket",
    "GetBucketLocation": "s3:GetBucketLocation",
}
_ON_OBJECT = {
    "PutObject": "s3:PutObject",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "DeleteObject": "s3:DeleteObject",
}


def rules() -> Mapping[str, AccessRule]:
    """Operation to rule."""
    found: dict[str, AccessRule] = {"ListBuckets": _all_buckets, "DeleteObjects": _each}
    found |= dict.fromkeys(("ListObjects", "ListObjectsV2"), _listing)
    found |= dict.fromkeys(_ON_BUCKET, _bucket)
    return found | dict.fromkeys(_ON_OBJECT, _object)


def bucket_arn(name: str) -> str:
    """The ARN of a bucket: without region and account."""
    return f"arn:aws:s3:::{name}"


def _bucket(request: Request) -> Sequence[Access]:
    return (Access(action=_ON_BUCKET[request.operation], resources=(bucket_arn(request.input["Bucket"]),)),)


def _object(request: Request) -> Sequence[Access]:
    arn = f"{bucket_arn(request.input['Bucket'])}/{request.input['Key']}"
    return (Access(action=_ON_OBJECT[request.operation], resources=(arn,)),)


def _all_buckets(request: Request) -> Sequence[Access]:
    return (Access(action="s3:ListAllMyBuckets"),)


def _listing(request: Request) -> Sequence[Access]:
    given = request.input
    context = {
        f"s3:{name}": (given[member],)
        for name, member in (("prefix", "Prefix"), ("delimiter", "Delimiter"))
        if member in given
    }
    return (Access(action="s3:ListBucket", resources=(bucket_arn(given["Bucket"]),), context=context),)


def _each(request: Request) -> Sequence[Access]:
    bucket = bucket_arn(request.input["Bucket"])
    keys = tuple(f"{bucket}/{o['Key']}" for o in request.input["Delete"]["Objects"])
    return (Access(action="s3:DeleteObject", resources=keys),)
