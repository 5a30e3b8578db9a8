package doctor_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/firewall/firewalltest"
	"github.com/slash32/slash32/test/wait"
)

// story is one firewall: its rules drop what guests send and are sent; doctor says so;
// what it says to run helps. Then the agent is to see to it.
type story struct {
	code  string
	says  []string
	drops []string // of the ways
	// start makes the firewall's rules, reload makes them anew, reset takes away what
	// the fix did.
	start, reload, reset func(l *lab)
	rules                int                 // of the agent's in coexist: manage
	clean                func(l *lab) string // what iptables or nft list of theirs, without ours
}

func (s story) tell(t *testing.T) {
	l := newLab(t)
	l.well()
	s.start(l)
	l.closed("beside the firewall", s.drops...)
	for _, fix := range l.explained(s.code, s.says...) {
		l.host.do(fix)
	}
	l.open("after the documented step")
	l.well()

	s.reset(l)
	l.closed("without it", s.drops...)
	before := s.clean(l)
	l.configure("manage")
	l.open("in coexist: manage")
	l.well()
	if n := l.mine(); n != s.rules {
		l.Errorf("the agent has made %d rules, want %d", n, s.rules)
	}
	s.reload(l)
	l.open("after a reload")
	if n := l.mine(); n != s.rules {
		l.Errorf("after a reload there are %d rules, want %d", n, s.rules)
	}
	l.configure("warn")
	wait.For(t, limit, "the end of the agent's rules", func() bool { return l.mine() == 0 })
	l.closed("when coexist says warn again", s.drops...)
	if after := s.clean(l); after != before {
		l.Errorf("of theirs there was\n%sand is\n%s", before, after)
	}
	l.explained(s.code)
	l.configure("ignore")
	wait.For(t, limit, "the end of the warning", func() bool { return len(l.status().Warnings) == 0 })
}

// iptables lists both families' rules.
func iptables(l *lab) string {
	return l.host.do("iptables -S FORWARD; iptables -S DOCKER-USER; ip6tables -S")
}

func TestDocker(t *testing.T) {
	load := func(l *lab) {
		l.host.do("iptables-nft-restore --noflush <<-'END'\n" + firewalltest.Docker + "END\nip6tables-nft-restore --noflush <<-'END'\n" + firewalltest.Docker + "END")
	}
	again := func(l *lab) {
		l.host.do("iptables -F; iptables -X; iptables -P FORWARD ACCEPT; ip6tables -F; ip6tables -X; ip6tables -P FORWARD ACCEPT")
		load(l)
	}
	story{
		code: "W301", says: []string{"Docker: the policy of chain FORWARD in table ip", "(web1)"},
		drops: []string{"out, IPv4", "out, IPv6", "in, IPv4", "in, IPv6"},
		start: load, reload: again, reset: again, rules: 4, clean: iptables,
	}.tell(t)
}

// TestUninstall: the agent's rules in other programs' chains go with it.
func TestUninstall(t *testing.T) {
	l := newLab(t)
	l.host.do("iptables-nft-restore --noflush <<-'END'\n" + firewalltest.Docker + "END\nnft add table inet firewalld; nft 'add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy drop; }'")
	before := l.host.do("iptables -S; nft list table inet firewalld")
	l.configure("manage")
	wait.For(t, limit, "the agent's rules", func() bool { return l.mine() == 4 })
	script, err := filepath.Abs("../../packaging/deactivate")
	if err != nil {
		t.Fatal(err)
	}
	l.host.do("kill $(pidof slash32d); while pidof slash32d; do :; done; FORCE=1 " + script)
	if after := l.host.do("iptables -S; nft list table inet firewalld"); after != before {
		t.Errorf("there was\n%sand is\n%s", before, after)
	}
}

func TestUFW(t *testing.T) {
	story{
		code: "W302", says: []string{"ufw: the policy of chain FORWARD in table ip", "(web1)"},
		drops:  []string{"out, IPv4", "out, IPv6", "in, IPv4", "in, IPv6"},
		start:  func(l *lab) { l.host.do("ufw --force enable") },
		reload: func(l *lab) { l.host.do("ufw reload") },
		reset: func(l *lab) {
			l.host.do("ufw route delete allow in on s32-+; ufw route delete allow out on s32-+")
		},
		rules: 4,
		clean: func(l *lab) string { return l.host.do("iptables -S; ip6tables -S; ufw status") },
	}.tell(t)
}

func TestFirewalld(t *testing.T) {
	story{
		code: "W303", says: []string{"firewalld: chain filter_", "in table inet firewalld", "(web1)"},
		drops: []string{"out, IPv4", "out, IPv6", "in, IPv4", "in, IPv6"},
		start: func(l *lab) {
			l.bus()
			l.host.daemon("firewalld --nofork --nopid")
			wait.For(t, limit, "firewalld", func() bool {
				out, err := l.host.try("firewall-cmd --state")
				return err == nil && strings.TrimSpace(out) == "running"
			})
		},
		reload: func(l *lab) { l.host.do("firewall-cmd --reload") },
		reset: func(l *lab) {
			l.host.do("firewall-cmd --permanent --delete-policy slash32; firewall-cmd --permanent --zone=trusted --remove-interface=s32-+; firewall-cmd --reload")
		},
		rules: 2,
		clean: func(l *lab) string { return l.host.do("nft -s list table inet firewalld") },
	}.tell(t)
}
