import logging
import signal
import threading

from django.core.management.base import BaseCommand

from project.uploads.worker import Worker

logger = logging.getLogger("project.uploads.worker")


class Command(BaseCommand):
    help = "Analyse uploaded files, one after the other. Any number of workers may run."

    def handle(self, **options: object) -> None:
        worker = Worker()
        for number in (signal.SIGTERM, signal.SIGINT):
            # In a thread: the main thread, which runs the handler, may hold the lock of the event that stop() sets.
            signal.signal(number, lambda *_: threading.Thread(target=worker.stop, daemon=True).start())
        logger.info("waiting for uploads and imports")
        worker.run()
        logger.info("stopped")
