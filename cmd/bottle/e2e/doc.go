// Package e2e holds the tests that run bottle's own program on the test host,
// as a user would, with the real containerd, runsc, CNI plugins, git and Claude
// Code. It contains tests only.
package e2e
