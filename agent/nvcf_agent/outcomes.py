"""What comes of a start that failed, and of what a backend reports. Pure."""

from nvcf_agent import request as requests
from nvcf_agent.backends.interface import Ended, Event, Ready, Unready
from nvcf_agent.errors import LaunchError, Refused, StartError
from nvcf_agent.request import Category, Request


def after_event(request: Request, event: Event, *, now: float, wall: float) -> Request:
    """The request after something happened to its instance."""
    match event:
        case Ready():
            return requests.ready(request, wall)
        case Unready(_, reason):
            return requests.unready(request, reason, now=now, wall=wall)
        case Ended(_, reason, category):
            return requests.ended(request, category, reason, now=now, wall=wall)


def after_failed_start(
    request: Request, error: StartError | LaunchError | Refused, *, now: float, wall: float
) -> Request:
    """The request after its instance could not be started: again soon, again as after a crash, or never."""
    match error:
        case StartError():
            return requests.postponed(request, str(error), now=now, wall=wall)
        case LaunchError():
            return requests.not_launched(request, str(error), now=now, wall=wall)
        case _:
            return requests.rejected(request, Category.UNSUPPORTED, str(error), wall)
