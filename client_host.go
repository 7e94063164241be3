// client_host.go is everything between what a user types and a connection that may
// be dialled: words like ann@box:photos, BERTH_URL, config.toml and the options of the
// command line. It knows files and the environment, and nothing of frames or verbs;
// whose certificate is trusted is client_keys.go's, the password client_password.go's.
// It is a file of its own because this is what is the same for every verb and is
// decided before a byte is sent.
//
// Nothing here is safe for two goroutines at once: a box makes its connections one
// after the other, so that a person is asked once.

package main

import (
	"bufio"
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode"
)

const (
	// defaultPort is where berth listens unless told otherwise: contract section 3.
	defaultPort = "2121"

	// configFileHint is the file of host aliases, as messages name it.
	configFileHint = "~/.config/berth/config.toml"

	// socketScheme begins a host that is a unix socket on this machine.
	socketScheme = "unix:"

	// maxHostJobs bounds `jobs`; limits.sessions_per_address is 100 unless configured.
	maxHostJobs = 64

	hostURLVariable = "BERTH_URL"
)

// --- what is typed ---

// A target is a name on the command line: a file here, or one on a box.
type target struct {
	remote   bool
	user     string // "": not said
	host     string // an alias, a name or an address without brackets; "" with socket
	path     string // as typed, what follows the colon; "": the home
	port     int    // 0: not said
	socket   string // absolute path of a unix socket
	password string // of a URL
	typed    string // the word, without a password
}

// parseTarget understands [user@]host:[path], [user@][v6]:[path],
// [user@]unix:/run/berth/berth.sock:[path], berth://[user[:password]@]host[:port][/path]
// with a path relative to the home, and :path, which is on the box that BERTH_URL
// names and in its directory. "~" and "~/x" are the home, as scp users write it. Any
// other word without ":", or with "/" before the first one, is a file here: scp's rule,
// so ./a:b is one. The error is of exit code 2.
func parseTarget(word string) (target, error) {
	if word == "" {
		return target{}, usageErr(`an empty word names no file; write "." for this directory`)
	}
	if i := strings.Index(word, "://"); i > 0 && isScheme(word[:i]) {
		return parseURL(word, word[:i])
	}
	t := target{typed: word}
	start := 0 // of the host
	head := word
	if i := strings.IndexAny(word, ":/["); i >= 0 {
		head = word[:i]
	}
	if i := strings.LastIndexByte(head, '@'); i >= 0 {
		t.user, start = word[:i], i+1
	}
	rest, ok := word[start:], false
	switch {
	case beginsWith(rest, "["):
		end := strings.IndexByte(rest, ']')
		if end < 0 || !beginsWith(rest[end+1:], ":") {
			if _, err := netip.ParseAddr(rest[1:max(end, 1)]); err == nil && end == len(rest)-1 {
				return target{}, usageErr("%s is a box without a path; write %s: for its home", shownText(word), shownText(word))
			}
			return t, nil
		}
		t.host, t.path = rest[1:end], rest[end+2:]
	case beginsWith(rest, socketScheme):
		t.socket, t.path, _ = cutText(rest[len(socketScheme):], ":")
		if err := checkSocket(t.socket); err != nil {
			return target{}, usageErr("%s: %v", shownText(word), err)
		}
	default:
		i := strings.IndexAny(rest, ":/")
		if i < 0 || rest[i] == '/' {
			return target{typed: word}, nil
		}
		for _, address := range []string{rest, rest[:strings.LastIndexByte(rest, ':')]} {
			if isBareIPv6(address) {
				return target{}, usageErr("%s: an IPv6 address needs brackets before the colon; write [%s]:", shownText(word), shownText(address))
			}
		}
		t.host, t.path, ok = cutText(rest, ":")
		if t.host == "" && start == 0 && ok {
			return underDefault(t)
		}
	}
	t.remote = true
	t.path = fromHome(t.path)
	if t.socket == "" {
		if err := checkHostWord(t.host); err != nil {
			return target{}, usageErr("%s: %v", shownText(word), err)
		}
	}
	if start > 0 {
		if err := checkLoginName(t.user); err != nil {
			return target{}, usageErr("%s: %v", shownText(word), err)
		}
	}
	return t, nil
}

// defaultTarget is what BERTH_URL names: a berth:// URL, user@box:dir or just a box.
// false: it is not set.
func defaultTarget() (target, bool, error) {
	word := os.Getenv(hostURLVariable)
	if word == "" {
		return target{}, false, nil
	}
	full := word
	if !strings.ContainsAny(word, ":/") || strings.HasSuffix(word, "]") {
		full += ":"
	}
	if beginsWith(full, ":") {
		return target{}, false, usageErr("%s is %s, which names no box; write one like berth://ann@box/photos", hostURLVariable, shownText(word))
	}
	t, err := parseTarget(full)
	if err != nil {
		return target{}, false, usageErr("%s: %v", hostURLVariable, err)
	}
	if !t.remote {
		return target{}, false, usageErr("%s is %s, which names no box; write one like berth://ann@box/photos", hostURLVariable, shownText(word))
	}
	return t, true, nil
}

// underDefault is :path.
func underDefault(t target) (target, error) {
	d, ok, err := defaultTarget()
	if err != nil {
		return target{}, err
	}
	if !ok {
		return target{}, usageErr("%s: which box? Name it before the colon, or set %s=berth://ann@box/", shownText(t.typed), hostURLVariable)
	}
	d.path, d.typed = joinRemote(d.path, fromHome(t.path)), t.typed
	return d, nil
}

// parseURL reads berth://... Whatever is wrong, the word is not repeated: it may hold
// a password.
func parseURL(word, scheme string) (target, error) {
	if !strings.EqualFold(scheme, "berth") {
		return target{}, usageErr("%s:// is not berth's protocol: use lftp or curl for it, or write berth://box/path for a berth", shownText(scheme))
	}
	wrong := func(why string) (target, error) {
		return target{}, usageErr("the berth:// address %s; write berth://ann@box:2121/photos, and odd characters as %%XX", why)
	}
	u, err := url.Parse("berth" + word[len(scheme):])
	switch {
	case err != nil:
		return wrong("cannot be read")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(word, "#"):
		return wrong("has a ? or # in it")
	}
	t := target{remote: true, host: u.Hostname(), path: fromHome(strings.TrimPrefix(u.Path, "/"))}
	if err := checkHostWord(t.host); err != nil {
		return wrong(err.Error())
	}
	if p := u.Port(); p != "" {
		if t.port, err = strconv.Atoi(p); err != nil || t.port < 1 || t.port > 65535 {
			return wrong("has port " + shownText(p) + ", which is not between 1 and 65535")
		}
	}
	if u.User != nil {
		t.user = u.User.Username()
		t.password, _ = u.User.Password()
		if err := checkLoginName(t.user); err != nil {
			return wrong(err.Error())
		}
		u.User = url.User(t.user)
	}
	t.typed = u.String()
	return t, nil
}

func isScheme(s string) bool {
	return strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789+-.") == ""
}

func isBareIPv6(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Is6()
}

// fromHome writes a path that begins with "~" as one from the home, which is "/".
// A file that is called so is ./~.
func fromHome(p string) string {
	if p == "~" || beginsWith(p, "~/") {
		return "/" + strings.TrimLeft(p[1:], "/")
	}
	return p
}

// checkHostWord refuses what can be neither a name, an alias nor an address.
func checkHostWord(host string) error {
	odd := func(r rune) bool {
		return !unicode.IsGraphic(r) || unicode.IsSpace(r) || strings.ContainsRune(`/@[]\?#"'`, r)
	}
	_, err := netip.ParseAddr(host)
	switch {
	case host == "":
		return newError("names no box")
	case len(host) > maxHostName || host[0] == '-' || strings.ContainsFunc(host, odd) || err != nil && strings.ContainsAny(host, ":%"):
		return errorf("%s is not the name of a box", configQuote(host))
	}
	return nil
}

// checkLoginName is wide: which names there are is the server's to say.
func checkLoginName(user string) error {
	if user == "" || len(user) > maxHostName || strings.ContainsFunc(user, unicode.IsControl) {
		return errorf("%s is not a user name", configQuote(user))
	}
	return nil
}

func checkSocket(p string) error {
	switch {
	case !filepath.IsAbs(p) || strings.HasSuffix(p, "/") || strings.ContainsRune(p, 0):
		return newError("unix: takes the absolute path of a socket; write unix:/run/berth/berth.sock:path")
	case len(p) > maxUnixPath:
		return errorf("a socket's path has at most %d bytes, and this one has %d", maxUnixPath, len(p))
	}
	return nil
}

// --- config.toml ---

// hostsConfig is config.toml.
type hostsConfig struct {
	Hosts map[string]hostConfig `toml:"hosts"`
}

// hostConfig is [hosts.NAME]: what NAME: means on the command line.
type hostConfig struct {
	Host        string `toml:"host"` // "": NAME itself
	Port        int    `toml:"port"`
	User        string `toml:"user"`
	Fingerprint string `toml:"fingerprint"`
	CA          string `toml:"ca"`
	Key         string `toml:"key"`
	Jobs        int    `toml:"jobs"`
	Plain       bool   `toml:"plain"`
	Directory   string `toml:"directory"` // where relative paths begin
}

// hostDir is where the client keeps its files, or "" where no home is known, as in
// some services: then there is neither configuration nor memory.
func hostDir() string {
	// A relative XDG_CONFIG_HOME is to be ignored, its specification says.
	if dir := os.Getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return joinPath(dir, "berth")
	}
	if home, err := os.UserHomeDir(); err == nil && filepath.IsAbs(home) {
		return filepath.Join(home, ".config", "berth")
	}
	return ""
}

// loadHosts reads config.toml; one that is not there is an empty one. The error tells
// every mistake with its line, and has exit code 2.
func loadHosts() (*hostsConfig, error) {
	c := &hostsConfig{}
	dir := hostDir()
	if dir == "" {
		return c, nil
	}
	file := joinPath(dir, "config.toml")
	data, err := readConfigBytes(file, maxConfigFile)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return c, nil
	case err != nil:
		return nil, usageErr("%s: %v; make it readable or remove it", file, err)
	}
	doc := parseTOML(file, data, reflect.TypeFor[hostsConfig]())
	doc.decode(reflect.ValueOf(c).Elem())
	check := configChecker{doc}
	for _, name := range slices.Sorted(maps.Keys(c.Hosts)) {
		h := c.Hosts[name]
		h.check(check, tomlJoinKey("hosts", name), name)
		h.CA, h.Key = hostFile(dir, h.CA), hostFile(dir, h.Key)
		c.Hosts[name] = h
	}
	doc.sort()
	if len(doc.errs) > 0 {
		return nil, usageErr("%v", doc.errs)
	}
	return c, nil
}

// check finds mistakes of meaning, and writes the fingerprint as ours are written.
func (h *hostConfig) check(c configChecker, at, name string) {
	if err := checkHostWord(name); err != nil {
		c.bad(at, "%v; write one as in box:photos", err)
	}
	socket, isSocket := cutPrefix(h.Host, socketScheme)
	host := strings.TrimSuffix(strings.TrimPrefix(h.Host, "["), "]")
	if isSocket {
		if err := checkSocket(socket); err != nil {
			c.bad(at+".host", "%v", err)
		}
	} else if h.Host != "" && checkHostWord(host) != nil {
		c.bad(at+".host", `%s is not a name or an address; write host = "192.168.1.20", and the port as port = 2121`, configQuote(h.Host))
	}
	if h.Port < 0 || h.Port > 65535 {
		c.bad(at+".port", "%d is not between 1 and 65535", h.Port)
	}
	if h.User != "" {
		if err := checkLoginName(h.User); err != nil {
			c.bad(at+".user", "%v", err)
		}
	}
	if h.Fingerprint != "" {
		fp, err := normalFingerprint(h.Fingerprint)
		if err != nil {
			c.bad(at+".fingerprint", "%v", err)
		}
		h.Fingerprint = fp
	}
	if h.Jobs < 0 || h.Jobs > maxHostJobs {
		c.bad(at+".jobs", "%d is not between 1 and %d", h.Jobs, maxHostJobs)
	}
	for key, set := range map[string]bool{"fingerprint": h.Fingerprint != "", "ca": h.CA != "", "key": h.Key != ""} {
		if h.Plain && set {
			c.badAt(at+".plain", at+"."+key, "of no use with plain = true, which means no TLS; keep one of the two")
		}
		if isSocket && set {
			c.bad(at+"."+key, "of no use with a unix socket, which has no TLS; leave it out")
		}
	}
	if isSocket && h.Port != 0 {
		c.bad(at+".port", "of no use with a unix socket; leave it out")
	}
}

// hostFile is a file name of config.toml: "~/" is the home, and what is relative is
// seen from the file's own directory, since the verb may run anywhere.
func hostFile(dir, p string) string {
	if rest, ok := cutPrefix(p, "~/"); ok {
		if home, err := os.UserHomeDir(); err == nil {
			return joinPath(home, rest)
		}
	}
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return joinPath(dir, p)
}

// --- where to connect ---

// hostOptions are the connection options of the command line.
type hostOptions struct {
	port                               int // 0: not said
	plain, tls                         bool
	ca, fingerprint, passwordFile, key string
}

// A hostSpec is a box as it is dialled, and how to get in there.
type hostSpec struct {
	name             string // as typed, fit to be shown
	network, address string // "tcp" "box:2121", "unix" "/run/berth/berth.sock"
	serverName       string // for TLS
	user             string // never empty
	userSaid         bool   // by the command line or config.toml, and not guessed
	tls              bool
	mayFallBack      bool   // loopback, and nothing speaks for TLS: use it if the server wants it
	base             string // config.toml's directory: where relative paths begin
	jobs             int    // of config.toml; 0: not said

	pin         string // as known_hosts names it: "[box]:2121"
	fingerprint string // the certificate has to be this one
	said        string // where fingerprint is from, for messages
	ca          string // file of certificates that have to vouch for it
	trusted     string // fingerprint that a person said yes to, should known_hosts not take it

	keyFile     string
	certificate *tls.Certificate // of keyFile; nil: there is no key

	password     string // of the URL
	passwordFile string
	machines     []string // names to look for in netrc
	given        bool     // a password that was not prompted for has been handed out

	ask    func(prompt string, echo bool) (string, error) // askTerminal
	notice func(text string)                              // a warning, without line end
}

// resolveHost joins a remote target with the options and with what config.toml says
// of its host, in this order, and fills in the rest. Whether TLS is used:
//
//   - unix sockets never
//   - --plain, else --tls, else plain = true decide where they are said
//   - loopback addresses and "localhost" not, unless a fingerprint, an authority or a
//     key is given, or a certificate of theirs is remembered; mayFallBack says then
//     that the server may have it otherwise
//   - everything else does
//
// Errors are of exit code 2: nothing has been connected yet.
func resolveHost(t target, o hostOptions) (*hostSpec, error) {
	if !t.remote {
		return nil, usageErr("%s is no box; write box, user@box or unix:/run/berth/berth.sock", shownText(t.typed))
	}
	hosts, err := loadHosts()
	if err != nil {
		return nil, err
	}
	switch {
	case o.plain && (o.tls || o.ca != "" || o.fingerprint != ""):
		return nil, usageErr("--plain means no TLS; leave it out, or leave out --tls, --ca and --fingerprint")
	case o.port < 0 || o.port > 65535:
		return nil, usageErr("port %d is not between 1 and 65535", o.port)
	}
	c := hosts.Hosts[t.host]
	h := &hostSpec{
		network: "tcp", base: c.Directory, jobs: c.Jobs, password: t.password, passwordFile: o.passwordFile,
		user: cmp.Or(t.user, c.User), ask: askTerminal,
		notice: func(text string) { fmt.Fprintf(os.Stderr, "berth: %s\n", text) },
	}
	h.userSaid = h.user != ""
	h.name = shownText(t.host)
	if isBareIPv6(t.host) {
		h.name = "[" + t.host + "]"
	}
	socket := t.socket
	if t.socket != "" {
		h.name = shownText(socketScheme + t.socket)
	} else {
		socket, _ = cutPrefix(c.Host, socketScheme)
		if socket == c.Host {
			socket = ""
		}
	}
	if socket != "" {
		if o.port != 0 || t.port != 0 || o.plain || o.tls || o.ca != "" || o.fingerprint != "" || o.key != "" {
			return nil, usageErr("%s is a unix socket: leave out -p, --plain, --tls, --ca, --fingerprint and --key", h.name)
		}
		h.network, h.address = "unix", socket
	} else {
		h.resolveAddress(t, o, c)
		if err := h.resolveTLS(o, c); err != nil {
			return nil, err
		}
	}
	if h.user == "" {
		return h, h.guessUser()
	}
	return h, nil
}

func (h *hostSpec) resolveAddress(t target, o hostOptions, c hostConfig) {
	host := strings.TrimSuffix(strings.TrimPrefix(cmp.Or(c.Host, t.host), "["), "]")
	port := defaultPort
	if n := cmp.Or(o.port, t.port, c.Port); n != 0 {
		port = itoa(n)
	}
	h.address = joinHostPort(host, port)
	name := pinHost(host)
	h.pin = "[" + name + "]:" + port
	h.serverName, _, _ = cutText(name, "%") // a zone is this machine's business
	h.machines = []string{t.host, host}
}

func (h *hostSpec) resolveTLS(o hostOptions, c hostConfig) error {
	h.ca, h.fingerprint, h.said = o.ca, o.fingerprint, "--fingerprint"
	if o.ca == "" && o.fingerprint == "" { // what is typed is meant in place of the file's
		h.ca, h.fingerprint, h.said = c.CA, c.Fingerprint, configFileHint
	} else if o.fingerprint != "" {
		var err error
		if h.fingerprint, err = normalFingerprint(o.fingerprint); err != nil {
			return usageErr("--fingerprint: %v", err)
		}
	}
	h.keyFile = cmp.Or(o.key, c.Key)
	switch {
	case o.plain:
	case o.tls:
		h.tls = true
	case c.Plain && o.ca == "" && o.fingerprint == "" && o.key == "":
	case isLoopback(h.serverName) && h.ca == "" && h.fingerprint == "" && h.keyFile == "":
		pins, err := readPins(h.pin)
		if err != nil {
			return usageErr("%v", err)
		}
		h.tls = len(pins) > 0
		h.mayFallBack = !h.tls
	default:
		h.tls = true
	}
	if !h.tls && !h.mayFallBack {
		if o.key != "" {
			return usageErr("--key needs TLS, and --plain means none; leave one of the two out")
		}
		return nil
	}
	if h.ca != "" {
		if _, _, err := readAuthorities(h.ca); err != nil {
			return err
		}
	}
	return h.loadKey()
}

// isLoopback: such hosts cannot be listened to on the way, so they need no TLS.
func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.Unmap().IsLoopback()
}

// guessUser is for who has not said a name.
func (h *hostSpec) guessUser() error {
	if e := h.netrc(); e != nil && e.login != "" {
		h.user = e.login
		return nil
	}
	h.user = cmp.Or(os.Getenv("USER"), os.Getenv("LOGNAME"), passwdName(os.Getuid()))
	if h.user == "" {
		return usageErr("who are you on %s? Write ann@%s", h.name, h.name)
	}
	return nil
}

// passwdName is the name that /etc/passwd has for uid, or "". os/user would do the
// same in this static program, and more.
func passwdName(uid int) string {
	f, err := os.Open("/etc/passwd")
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if p := strings.SplitN(lines.Text(), ":", 4); len(p) == 4 && p[2] == itoa(uid) {
			return p[0]
		}
	}
	return ""
}

// proof tells whether a login without a password may work: by the key, or by the uid
// on a unix socket.
func (h *hostSpec) proof() bool { return h.network == "unix" || h.tls && h.certificate != nil }
