// Package readme runs the commands of README.md on Debian servers: roots with systemd, booted
// on the test host. See the Makefile's target readme.
package readme
