"""The programs that are compared, each as its documentation would have it written."""
