// Without a server a browser may not fetch pages, so search lists its hits without extracts.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
