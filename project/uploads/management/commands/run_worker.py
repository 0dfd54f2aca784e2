import logging
import signal

from django.core.management.base import BaseCommand

from project.uploads.worker import Worker

logger = logging.getLogger("project.uploads.worker")


class Command(BaseCommand):
    help = "Analyse uploaded files, one after the other. Any number of workers may run."

    def handle(self, **options: object) -> None:
        worker = Worker()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: worker.stop())
        logger.info("waiting for uploads and imports")
        worker.run()
        logger.info("stopped")
