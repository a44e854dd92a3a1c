"""The smallest function: greet by name."""

from nvcf_worker import BadInput, Request, serve


async def handler(request: Request) -> dict[str, str]:
    match await request.json():
        case {"name": str(name)}:
            return {"greeting": f"Hello, {name}!"}
    raise BadInput('send {"name": "…"}')


if __name__ == "__main__":
    serve(handler)
