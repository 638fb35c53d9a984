package bottle

import "context"

// KeepRules has the host's firewall rules of all bottles written again whenever
// somebody takes them away, until stop is called, which waits for the end.
func (e *Engine) KeepRules(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := e.net.WatchRules(ctx); err != nil {
			e.log.Warn("the host's rules are not kept", "error", err)
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}
