// profile.go is what devices need that people do not: quirks, which are small
// deviations in the protocol, and profiles, which are presets over a user's keys. It
// is a file of its own because it is data that grows by one line for each device that
// somebody has met: what a quirk is and what a profile sets is read here and nowhere
// else. Where a quirk acts, the verbs ask (session.has); what is decided from a key
// does not know whether a file or a profile has set it.
//
// Of a key, the user's file comes first, then the profile that the file names, then
// that of the network he comes from ([[profiles.for]]), then the default. A network's
// profile holds for a session, so it sets only what is a session's: whether old files
// go when a home is full must not depend on where somebody connected from last.

package main

import (
	"net/netip"
	"slices"
	"strings"
)

// --- quirks ---

// A quirk is one deviation, or a set of them. All are off by default, and none acts on
// frames, which no device with quirks speaks.
type quirk uint16

const (
	quirkNoEPSV quirk = 1 << iota
	quirkNoActive
	quirkMkdExists
	quirkBackslash
	quirkKeepOpen
	quirkIgnoreALLO
	quirkHangUp
	quirkSiteUmask
)

// quirkTable has the word and what it does, by bit. README.md and the man page have
// these texts too; a test compares them.
var quirkTable = [...]struct{ word, help string }{
	{"no-epsv", "EPSV and EPRT do not exist, for a device that takes EPSV because it is offered and then hangs; over IPv6, which has nothing else, they do"},
	{"no-active", "PORT and EPRT do not exist: the server connects to nobody"},
	{"mkd-exists-ok", "MKD of a directory that is there answers 257, for a device that stops at 550"},
	{"backslash", `\ in paths is /, for a device that writes them as Windows does; no name can hold one then`},
	{"keep-open", "limits.idle does not end its sessions, for a device that logs in once and cannot again"},
	{"ignore-allo", "what ALLO announces is not held against the upload, for a device that announces more than it sends"},
	{"hang-up", "an upload is complete though the device has closed the control connection before it is told so"},
	{"site-umask", "SITE UMASK answers 200 and does nothing, for a device that stops at 504"},
}

// names are the words for q, in the order of the table.
//
//go:noinline
func (q quirk) names() []string {
	list := []string{} // never nil: it becomes a JSON array
	for i := range quirkTable {
		if q&(1<<i) != 0 {
			list = append(list, quirkTable[i].word)
		}
	}
	return list
}

// String is the words with commas, as --quirks takes them.
func (q quirk) String() string { return strings.Join(q.names(), ",") }

// parseQuirk reads one word.
func parseQuirk(word string) (quirk, error) {
	var known []string
	for i := range quirkTable {
		if quirkTable[i].word == word {
			return 1 << i, nil
		}
		known = append(known, quirkTable[i].word)
	}
	return 0, errorf("%s is no quirk; %s", configQuote(word), nearestWord(word, known))
}

// has tells whether one of these quirks holds for the session. Before login that is for
// its network's profile to say.
func (s *session) has(q quirk) bool {
	u := s.user
	if u == nil {
		u = s.srv.under(nil, s.peer)
	}
	q &= u.Quirks
	if q == 0 || s.fr != nil {
		return false
	}
	if !s.local.Is4() {
		q &^= quirkNoEPSV // RFC 2428: PASV and PORT have no room for such an address
	}
	return q != 0
}

// lacks tells whether a quirk takes the verb away.
func (s *session) lacks(c *command) bool {
	return c.off != 0 && s.has(c.off) || c.only != 0 && !s.has(c.only)
}

// --- profiles ---

// keySet is a set of the keys that profiles may set.
type keySet uint8

const (
	keyTLS keySet = 1 << iota
	keyPermissions
	keySessions
	keyWhenFull
	keyQuirks

	// networkKeys are those that hold for one session.
	networkKeys = keyTLS | keyPermissions | keySessions | keyQuirks
)

// presetKeys are their names in a user's file, by bit.
var presetKeys = [...]string{"tls", "permissions", "sessions", "when_full", "quirks"}

// keyBit is the bit of a key, 0 for one that no profile sets.
func keyBit(key string) keySet {
	if i := slices.Index(presetKeys[:], key); i >= 0 {
		return 1 << i
	}
	return 0
}

// A preset is a profile: a name, and the keys that it sets.
type preset struct {
	name, help string
	sets       keySet
	values     user
}

// presets are the profiles, by what the makers of such devices and their users have
// told; what each key is for stands beside it.
//
// expire is in none: that a device has a certain make is no reason to delete what it
// has stored, so its owner says for how long he wants it. Active mode, ALLO, lines that
// end with LF alone, lower case, XMKD and STOU need no profile; everybody has them.
var presets = [...]preset{
	{
		name: "camera", help: "an IP camera or recorder: plain FTP, upload only, the oldest recordings go when the quota is full",
		sets: keyTLS | keyPermissions | keySessions | keyWhenFull | keyQuirks,
		values: user{
			// Busybox ftpput, which most firmware has, cannot do TLS, and other firmware only
			// TLS 1.0, which RFC 8996 ends.
			TLS: "optional",
			// It makes directories level by level, tests with NLST, stores, and many give what is
			// complete its name only then, from .jpg_ or .tmp. Who opens its case has its password:
			// he shall not see nor delete what it has recorded.
			Permissions: permWrite | permList | permMkdir | permRename,
			// One login for all cameras of a site, sessions that stay for days, and those that
			// one which lost its power has left behind.
			Sessions: 50,
			// A camera that is told 552 stops recording. Nothing goes without a quota.
			WhenFull: "rotate",
			// EPSV was offered and its port blocked: cameras waited 130 s and tried again, for
			// ever. A session that stays open for days is logged in once, at power on.
			Quirks: quirkNoEPSV | quirkKeepOpen | quirkSiteUmask,
		},
	},
	{
		name: "scanner", help: "a scanner or multifunction printer: plain FTP, upload only, nothing it has stored is ever removed",
		sets: keyTLS | keyPermissions | keyQuirks,
		values: user{
			TLS:         "optional", // the same firmware: old TLS or none
			Permissions: permWrite | permList | permMkdir,
			// It makes the directory of a job without a look whether it is there, and has its
			// paths from a field in which people write them as on Windows.
			Quirks: quirkMkdExists | quirkBackslash | quirkSiteUmask,
		},
	},
	{
		name: "strict", help: "people over the internet: TLS everywhere, for files too, and no active mode",
		sets: keyTLS | keyQuirks,
		values: user{
			// Also on loopback, where a tunnel or a proxy may end, and if tls.require is "none".
			TLS: "always",
			// The server opens no connection that a client asks for: no scan by PORT, and a
			// firewall in front of it may let nothing out.
			//
			// tls.session_reuse = "on" is not a user's to have: it holds TLS at 1.2, which is
			// agreed on before there is a name.
			Quirks: quirkNoActive,
		},
	},
}

// keyText is the values of some of the keys that profiles set; "": of none.
func (u *user) keyText(keys keySet) string {
	var set []string
	for i, value := range [...]string{u.TLS, u.Permissions.String(), itoa(u.Sessions), u.WhenFull, u.Quirks.String()} {
		if keys&(1<<i) != 0 {
			set = append(set, presetKeys[i]+" "+value)
		}
	}
	return strings.Join(set, "; ")
}

// findPreset is the profile of that name, or nil.
//
//go:noinline
func findPreset(name string) *preset {
	for i := range presets {
		if presets[i].name == name {
			return &presets[i]
		}
	}
	return nil
}

// checkProfile is what is wrong with a profile's name; "" if it is one.
func checkProfile(name string) string {
	if findPreset(name) != nil {
		return ""
	}
	var known []string
	for i := range presets {
		known = append(known, presets[i].name)
	}
	return configQuote(name) + " is no profile; known: " + strings.Join(known, ", ") // all three, since their names tell what they are
}

// fill sets those of the keys that p sets, and tells which these are.
//
//go:noinline
func (u *user) fill(p *preset, keys keySet) keySet {
	keys &= p.sets
	if keys&keyTLS != 0 {
		u.TLS = p.values.TLS
	}
	if keys&keyPermissions != 0 {
		u.Permissions = p.values.Permissions
	}
	if keys&keySessions != 0 {
		u.Sessions = p.values.Sessions
	}
	if keys&keyWhenFull != 0 {
		u.WhenFull = p.values.WhenFull
	}
	if keys&keyQuirks != 0 {
		u.Quirks = p.values.Quirks
	}
	return keys
}

// nobody is whom a name that does not exist is held for: what holds before login must
// be the same for it as for a user whose file says nothing.
var nobody = &user{TLS: "required", Permissions: permAll, Sessions: defaultUserSessions, WhenFull: "reject"}

// longestNetwork is the index of the network that contains a and is the longest of
// those; -1 if there is none.
func longestNetwork(n int, at func(int) network, a netip.Addr) int {
	best := -1
	for i := range n {
		if net := at(i); net.contains(a) && (best < 0 || net.Bits() > at(best).Bits()) {
			best = i
		}
	}
	return best
}

// rule is the entry of For that holds for an address; -1: none.
//
//go:noinline
func (c *profilesConfig) rule(a netip.Addr) int {
	return longestNetwork(len(c.For), func(i int) network { return c.For[i].Network }, a)
}

// under is u, as the registry has him, with what the profile of his network sets: u
// himself where that is nothing.
//
//go:noinline
func (c *profilesConfig) under(u *user, a netip.Addr) *user {
	i := c.rule(a)
	if i < 0 {
		return u
	}
	made := *u
	if made.network = made.fill(findPreset(c.For[i].Profile), networkKeys&^(u.own|u.preset)); made.network == 0 {
		return u
	}
	made.networkProfile = c.For[i].Profile
	return &made
}

// under is the registry's user as he is from there; nobody for nil.
func (s *server) under(u *user, peer netip.Addr) *user {
	if u == nil {
		u = nobody
	}
	return s.config().Profiles.under(u, peer)
}

// origin tells where the value of a key is from.
//
//go:noinline
func (u *user) origin(key string, own bool) string {
	switch bit := keyBit(key); {
	case own:
		return "file"
	case bit&u.preset != 0:
		return "profile " + u.Profile
	case bit&u.network != 0:
		return "network's profile " + u.networkProfile
	}
	return "default"
}

// clearTaken tells whether u's password, and his files, may cross a connection in clear
// text, and which key says so. nearby: it does not leave this machine.
//
//go:noinline
func clearTaken(u *user, require string, nearby bool) (yes bool, key string) {
	switch u.TLS {
	case "optional":
		return true, "tls"
	case "always":
		return false, "tls"
	}
	return require == "none" || require != "always" && nearby, "tls.require"
}
