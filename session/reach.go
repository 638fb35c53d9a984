package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/bot-bottle/bottle/internal/sessionclient"
	proto "github.com/bot-bottle/bottle/internal/sessionproto"
	"github.com/bot-bottle/bottle/runtime"
)

// errNotReached is wrapped if PID 1 could not be reached. It has no request then.
var errNotReached = sessionclient.ErrNotReached

// reachTime bounds the wait for PID 1, which may not have begun to run on a busy host. What
// is in the sandbox can make it as long as that.
const reachTime = 5 * time.Second

// ask connects with PID 1 of a running bottle and sends a request. The error wraps
// errNotReached if PID 1 has nothing of the request.
func ask(ctx context.Context, rt *runtime.Client, name string, req proto.Request) (*os.File, *runtime.Beside, error) {
	beside := rt.Beside(ctx, name)
	if beside == nil {
		return nil, nil, fmt.Errorf("%w: %w", errNotReached, ErrNotRunning)
	}
	conn, err := sessionclient.Reach(ctx, rt.Control(name), GuestDir(rt.Dir(name)), reachTime, func() error {
		if !beside.Running() {
			return ErrNotRunning
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	// What is connected may not read it.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	_, err = conn.Write(proto.JSON(proto.KindRequest, req))
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("ask PID 1 of %s: %w", name, err), conn.Close())
	}
	return conn, beside, nil
}
