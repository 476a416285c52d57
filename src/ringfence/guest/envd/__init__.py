"""E2B's envd: processes, files and watching of a sandbox over HTTP, served by the guest.

`app.build` makes the application. The layers below it: Connect methods (`processes`, `filesystem`, `watch`)
and plain routes (`files`, `metrics`); what they do (`process`, `start`, `spawn`; `download`, `upload`,
`inotify`, `entries`); and who and where (`users`, `paths`, `auth`).
"""
