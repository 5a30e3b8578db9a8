package pd

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/slash32/slash32/test/lab"
)

// The border router's pools. The second one is what is left of the provider's
// addresses after the renumbering.
var (
	firstPool  = netip.MustParsePrefix("2001:db8:f000::/44")
	secondPool = netip.MustParsePrefix("2001:db8:e000::/44")
)

// The files of the border router.
const (
	keaConf   = "/etc/kea6.json"
	keaRoutes = "/etc/kea-routes"
	keaLog    = "/var/log/kea6.log"
)

// keaConfig delegates a /56 to who asks, for a short time, and has keaRoutes called.
const keaConfig = `{ "Dhcp6": { "interfaces-config": { "interfaces": ["hv0"] },
 "server-id": { "type": "EN", "enterprise-id": 2495, "identifier": "0123456789", "persist": false },
 "lease-database": { "type": "memfile", "persist": true, "name": "/var/lib/kea6.csv", "lfc-interval": 0 },
 "hooks-libraries": [ { "library": "%s", "parameters": { "name": "` + keaRoutes + `", "sync": false } } ],
 "calculate-tee-times": false, "renew-timer": %d, "rebind-timer": %d, "preferred-lifetime": %d, "valid-lifetime": %d,
 "expired-leases-processing": { "reclaim-timer-wait-time": 1, "hold-reclaimed-time": 0 },
 "subnet6": [ { "id": 1, "subnet": "2001:db8:0:1::/64", "interface": "hv0",
   "pd-pools": [ { "prefix": "%s", "prefix-len": %d, "delegated-len": 56 } ] } ],
 "loggers": [ { "name": "kea-dhcp6", "severity": "INFO", "output_options": [ { "output": "stdout", "flush": true } ] } ] } }
`

// routes is what kea calls with each lease, in whose environment it is. The border
// routes to a client what the newest of its leases says, and nothing else: kea says
// nothing when it takes back what is no longer in a pool.
const routes = `#!/bin/sh
exec 2>>/var/log/kea-routes.log
case $1 in
leases6_committed)
	new=" "
	i=0
	while [ "$i" -lt "${LEASES6_SIZE:-0}" ]; do
		eval "type=\$LEASES6_AT${i}_TYPE prefix=\$LEASES6_AT${i}_ADDRESS/\$LEASES6_AT${i}_PREFIX_LEN"
		[ "$type" != IA_PD ] || new="$new$prefix "
		i=$((i + 1))
	done
	[ "$new" != " " ] || exit 0
	for prefix in $new; do ip -6 route replace "$prefix" via "$QUERY6_REMOTE_ADDR" dev hv0 proto ` + keaProto + `; done
	ip -6 route show via "$QUERY6_REMOTE_ADDR" dev hv0 proto ` + keaProto + ` | while read -r prefix _; do
		case "$new" in
		*" $prefix "*) ;;
		*) ip -6 route del "$prefix" dev hv0 proto ` + keaProto + ` ;;
		esac
	done
	;;
lease6_release | lease6_expire)
	[ "$LEASE6_TYPE" != IA_PD ] || ip -6 route del "$LEASE6_ADDRESS/$LEASE6_PREFIX_LEN" dev hv0 proto ` + keaProto + `
	;;
esac
`

// keaProto is the protocol number of the border's routes to what it delegates.
const keaProto = "44"

// lifetimes are the border's, in seconds.
var lifetimes = struct{ renew, rebind, preferred, valid int }{5, 8, 12, 20}

// border is the provider's router.
type border struct {
	lab *lab.Lab
	kea *lab.Process
}

// start starts kea with a pool.
func (b *border) start(ctx context.Context, pool netip.Prefix) error {
	library, err := filepath.Glob("/usr/lib/*/kea/hooks/libdhcp_run_script.so")
	if err != nil || len(library) != 1 {
		return fmt.Errorf("kea has %d libraries to run a script with. Fix: apt-get install kea-dhcp6-server", len(library))
	}
	text := fmt.Sprintf(keaConfig, library[0], lifetimes.renew, lifetimes.rebind, lifetimes.preferred, lifetimes.valid, pool.Addr(), pool.Bits())
	router := b.lab.Router
	if err := router.WriteFile(keaConf, text, 0o644); err != nil {
		return err
	}
	if err := router.WriteFile(keaRoutes, routes, 0o755); err != nil {
		return err
	}
	said := strings.Count(b.log(), "DHCP6_STARTED")
	b.kea, err = router.Start(keaLog, "env", "KEA_PIDFILE_DIR=/run/lab", "KEA_LOCKFILE_DIR=/run/lab", "kea-dhcp6", "-c", keaConf)
	if err != nil {
		return err
	}
	return lab.Wait(ctx, func() error {
		if log := b.log(); strings.Count(log, "DHCP6_STARTED") <= said {
			return fmt.Errorf("kea has not started: %s", log[max(0, len(log)-1500):])
		}
		return nil
	})
}

func (b *border) log() string {
	s, err := b.lab.Router.ReadFile(keaLog)
	if err != nil {
		return ""
	}
	return s
}

// restart ends kea and starts it with a pool.
func (b *border) restart(ctx context.Context, pool netip.Prefix) error {
	if err := b.kea.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	return b.start(ctx, pool)
}

// delegated is what the border routes to the host.
func (b *border) delegated(ctx context.Context) ([]netip.Prefix, error) {
	out, err := b.lab.Router.Exec(ctx, "ip", "-6", "route", "show", "dev", "hv0", "proto", keaProto)
	if err != nil {
		return nil, err
	}
	var prefixes []netip.Prefix
	for line := range strings.Lines(out) {
		prefix, via, _ := strings.Cut(line, " ")
		p, err := netip.ParsePrefix(prefix)
		if err != nil || !strings.HasPrefix(via, "via fe80::2 ") {
			return nil, fmt.Errorf("the border has a route that is not to the host: %s", line)
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, nil
}
