package main

import (
	"errors"
	"io"
	"os"
	"testing"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// TestInput: a session that has ended takes nothing of what is typed next.
func TestInput(t *testing.T) {
	near, farPath, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = near.Close() }()
	far, err := os.OpenFile(farPath, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = far.Close() }()
	if _, err := term.MakeRaw(int(far.Fd())); err != nil {
		t.Fatal(err)
	}
	in, err := newInput(far)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 10)
	go func() {
		defer close(got)
		for p := make([]byte, 100); ; {
			n, err := in.Read(p)
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Error(err)
				}
				return
			}
			got <- string(p[:n])
		}
	}()
	if _, err := io.WriteString(near, "one"); err != nil {
		t.Fatal(err)
	}
	if text := <-got; text != "one" {
		t.Errorf("the session reads %q", text)
	}
	if err := in.stop(); err != nil {
		t.Error(err)
	}
	if text, ok := <-got; ok {
		t.Errorf("after the end the session reads %q", text)
	}
	if n, err := in.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("Read after stop = %d, %v", n, err)
	}
	if _, err := io.WriteString(near, "two"); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 100)
	if n, err := far.Read(p); err != nil || string(p[:n]) != "two" {
		t.Errorf("the next reader reads %q, %v", p[:n], err)
	}
}
