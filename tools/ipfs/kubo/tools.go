//go:build tools

// Package kubo pins the Kubo that the tests run. `go install` refuses it: its go.mod excludes versions. After a change of
// the version in go.mod: `go mod tidy` (which reads this import), and the daemons' tests.
package kubo

import _ "github.com/ipfs/kubo/cmd/ipfs"
