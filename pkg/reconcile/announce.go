package reconcile

import (
	"context"
	"net/netip"
	"sync"

	"github.com/slash32/slash32/pkg/state"
)

// announce begins to tell the neighbours of the proxies that were added, so that
// they find a guest that has come from another host.
func (l *Loop) announce(ctx context.Context, changes []state.Change, begun *sync.WaitGroup) {
	added := map[string][]netip.Addr{}
	for _, c := range changes {
		if c.Proxy != nil && c.Verb == state.Add {
			added[c.Proxy.Link] = append(added[c.Proxy.Link], c.Proxy.IP)
		}
	}
	if l.Announce == nil {
		return
	}
	for link, addrs := range added {
		begun.Go(func() {
			if err := l.Announce(ctx, link, addrs); err != nil && ctx.Err() == nil {
				l.Log.Warnf("%v; the neighbours find the VMs when they ask again", err)
			}
		})
	}
}
