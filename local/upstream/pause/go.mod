module mlplatform.dev/local/upstream/pause

go 1.26.0
