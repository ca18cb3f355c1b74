//go:build tools

// Package cluster pins the IPFS-Cluster that the tests run. After a change of the version in go.mod: `go mod tidy` (which
// reads this import), and the daemons' tests.
package cluster

import _ "github.com/ipfs-cluster/ipfs-cluster/cmd/ipfs-cluster-service"
