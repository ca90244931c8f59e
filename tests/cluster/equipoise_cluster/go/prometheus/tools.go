//go:build tools

// Package tools names the command, so that go.mod and go.sum pin all it needs.
package tools

import _ "github.com/prometheus/prometheus/cmd/promtool"
