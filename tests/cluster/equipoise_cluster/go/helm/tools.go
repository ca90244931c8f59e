//go:build tools

// Package tools names the command, so that go.mod and go.sum pin all it needs.
package tools

import _ "helm.sh/helm/v4/cmd/helm"
