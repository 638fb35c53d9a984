package compare

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/bot-bottle/bottle"
)

const (
	// ClaudeImage is the image with Claude Code, which not every test host has.
	ClaudeImage = "docker.io/library/claude-bottle:claude"
	// ClaudePrompt is on its screen when it waits for input.
	ClaudePrompt = "shift+tab to cycle"
	// ClaudePatience bounds the wait for the prompt.
	ClaudePatience = 2 * time.Minute
)

// NewClaude is NewBottle for a benchmark of Claude Code, whose commands also have the variables of
// env. It returns nil, and says so, if the test host does not have the image. The caller must
// remove the directory.
func NewClaude(ctx context.Context, manifest string, env ...string) (_ *Bottle, err error) {
	if err := CheckTestHost(); err != nil {
		return nil, err
	}
	cfg, err := EngineConfig()
	if err != nil {
		return nil, err
	}
	e, err := bottle.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	if _, err := e.Image(ctx, ClaudeImage); err != nil {
		fmt.Printf("left out: %v\n", err)
		return nil, nil
	}
	dir, err := os.MkdirTemp("/run", "bottle-bench-")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "bottle.yaml"), []byte(manifest), 0o600); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &Bottle{Program: cfg.Program, Dir: dir, Env: append([]string{"HOME=" + dir, "TERM=xterm-256color"}, env...)}, nil
}
