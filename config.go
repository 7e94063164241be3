package main

// The configuration: the shape of berth.toml, what an empty file means, and the answer
// to "what is wrong with it", which names every mistake in one run. This file knows
// neither sockets nor sessions: it reads files and returns values, and whatever it
// accepts the rest of the program may use without looking again. How TOML becomes a
// struct is in config_toml.go; the types of its values are in config_values.go.

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	// defaultConfigPath is where every verb looks unless --config names another file.
	defaultConfigPath = "/etc/berth/berth.toml"

	// maxConfigFile bounds what is read of one file, so that a device or a misnamed
	// archive cannot eat the memory. The documented file has 3 KiB.
	maxConfigFile = 256 << 10

	// maxPEMFile is the same for certificates; a system's whole CA bundle has 250 KiB.
	maxPEMFile = 1 << 20

	// maxUnixPath is sizeof(sun_path) less the closing NUL, unix(7).
	maxUnixPath = 107

	// maxHostName is the longest domain name, RFC 1035 section 2.3.4, less its root dot.
	maxHostName = 253

	// maxBacklog is what the kernel takes, which caps it at net.core.somaxconn, an
	// int that it keeps in 16 bits in places (listen(2)).
	maxBacklog = 65535

	// maxDatagramBuffer keeps clear of an int's end on 32-bit boxes, doubled as the
	// kernel does it (socket(7), SO_RCVBUF).
	maxDatagramBuffer = 256 << 20

	// minDataPort is the lowest port a data connection may use: contract section 4.
	minDataPort = 1024

	// commandRunnerScheme starts exec.runner, the one kind of runner there is.
	commandRunnerScheme = "unix:"
)

// config is the whole of berth.toml; defaultConfig says what an empty file means.
type config struct {
	Server   serverConfig             `toml:"server"`
	Listen   listenConfig             `toml:"listen"`
	TLS      tlsConfig                `toml:"tls"`
	Passive  passiveConfig            `toml:"passive"`
	Profiles profilesConfig           `toml:"profiles"`
	Limits   limitsConfig             `toml:"limits"`
	Transfer transferConfig           `toml:"transfer"`
	Exec     execConfig               `toml:"exec"`
	Filter   filterConfig             `toml:"filter"`
	HTTP     httpConfig               `toml:"http"`
	Metrics  metricsConfig            `toml:"metrics"`
	Log      logConfig                `toml:"log"`
	Commands map[string]commandConfig `toml:"commands"`
}

// serverConfig is [server]. IdleExit 0 means to stay for ever.
type serverConfig struct {
	Name     string   `toml:"name"`
	StateDir string   `toml:"state_dir"`
	UsersDir string   `toml:"users_dir"`
	Drain    duration `toml:"drain"`
	IdleExit duration `toml:"idle_exit"`
}

// listenConfig is [listen]: what berth opens when systemd hands over no socket of
// that name. The first three and HTTP are HOST:PORT, the local ones absolute paths.
// Backlog and DatagramBuffer are the system's own if 0; the latter holds for
// sockets from systemd too.
type listenConfig struct {
	Control        []string  `toml:"control"`
	TLS            []string  `toml:"tls"`
	Datagram       []string  `toml:"datagram"`
	Local          []string  `toml:"local"`
	LocalDatagram  []string  `toml:"local_datagram"`
	HTTP           []string  `toml:"http"`
	Backlog        int       `toml:"backlog"`         // connections that wait to be accepted
	DatagramBuffer byteSize  `toml:"datagram_buffer"` // for requests that wait to be read
	IPv6Only       bool      `toml:"ipv6_only"`       // [::] is not every IPv4 address too
	LocalMode      fileMode  `toml:"local_mode"`      // of the unix sockets' files
	LocalGroup     string    `toml:"local_group"`     // "": that of the process
	ProxyFrom      []network `toml:"proxy_from"`      // who begins with a PROXY header
}

// tlsConfig is [tls]. Certificate and Key are both set or both empty; empty means
// the certificate berth makes for itself.
type tlsConfig struct {
	Certificate  string `toml:"certificate"`
	Key          string `toml:"key"`
	Require      string `toml:"require"`
	ClientCA     string `toml:"client_ca"`
	SessionReuse string `toml:"session_reuse"`
	StrictEOF    bool   `toml:"strict_eof"`
}

// passiveConfig is [passive]. Address is "", an IP address, or a host name that is
// resolved at use; the entries of For come before it, the longest network first.
type passiveConfig struct {
	Ports   portRange    `toml:"ports"`
	Address string       `toml:"address"`
	For     []passiveFor `toml:"for"`
}

// passiveFor is one [[passive.for]]: what PASV tells the clients of one network.
type passiveFor struct {
	Network network `toml:"network"`
	Address string  `toml:"address"`
}

// profilesConfig is [profiles]. Of the entries that fit, the longest network counts.
type profilesConfig struct {
	For []profileFor `toml:"for"`
}

// profileFor is one [[profiles.for]]: the profile of users who come from a network.
type profileFor struct {
	Network network `toml:"network"`
	Profile string  `toml:"profile"`
}

// limitsConfig is [limits]. Ban 0 bans nobody and Idle 0 never ends an idle
// session; everything else is above 0.
type limitsConfig struct {
	Sessions           int      `toml:"sessions"`
	SessionsPerAddress int      `toml:"sessions_per_address"`
	LoginFailures      int      `toml:"login_failures"`
	Ban                duration `toml:"ban"`
	LoginTimeout       duration `toml:"login_timeout"`
	Idle               duration `toml:"idle"`
	DataTimeout        duration `toml:"data_timeout"`
}

// transferConfig is [transfer].
type transferConfig struct {
	Durable    bool     `toml:"durable"`
	PartialTTL duration `toml:"partial_ttl"`
	ASCII      bool     `toml:"ascii"`
	Digest     string   `toml:"digest"`
	ModeZ      bool     `toml:"mode_z"`
}

// execConfig is [exec]. Timeout 0 and Output 0 mean no bound.
type execConfig struct {
	Runner          string   `toml:"runner"`
	Sandbox         string   `toml:"sandbox"`
	Timeout         duration `toml:"timeout"`
	Output          byteSize `toml:"output"`
	KillAfter       duration `toml:"kill_after"`        // from SIGTERM to SIGKILL
	Parallel        int      `toml:"parallel"`          // commands at once
	ParallelPerUser int      `toml:"parallel_per_user"` // and of one user
	Read            []string `toml:"read"`              // beyond the system's directories
	Write           []string `toml:"write"`             // beyond the user's own
}

// commandConfig is [commands.NAME]. Run[0] is an absolute path without a
// placeholder; each {x} in the rest of Run has a rule in Args, which a value must
// match from end to end. Timeout 0 means that of [exec].
type commandConfig struct {
	Run     []string          `toml:"run"`
	Args    map[string]string `toml:"args"`
	Timeout duration          `toml:"timeout"`
	TTY     bool              `toml:"tty"`
	Help    string            `toml:"help"`
	Read    []string          `toml:"read"` // with those of [exec]
	Write   []string          `toml:"write"`
}

// filterConfig is [filter]. An empty AllowFrom lets everyone in whom DenyFrom does not name.
type filterConfig struct {
	AllowFrom []network `toml:"allow_from"`
	DenyFrom  []network `toml:"deny_from"`
}

// httpConfig is [http]. Users are names of users.d, or none for pages without a password.
type httpConfig struct {
	TLS   bool     `toml:"tls"`
	Users []string `toml:"users"`
}

// metricsConfig is [metrics].
type metricsConfig struct {
	PerUser bool `toml:"per_user"` // false: no label names a user
}

// logConfig is [log]. Transfers is "" or an absolute path; Rate 0 means no limit.
type logConfig struct {
	Format    string `toml:"format"`
	Level     string `toml:"level"`
	Transfers string `toml:"transfers"` // the file of the transfer log, xferlog(5)
	Rate      int    `toml:"rate"`      // lines a second of a kind, see limitedKindOf
}

// defaultConfig is what an empty file means: contract section 10. Each call makes
// a new one, so the caller may change it.
func defaultConfig() *config {
	return &config{
		Server: serverConfig{
			Name:     "berth",
			StateDir: "/var/lib/berth",
			UsersDir: "/etc/berth/users.d",
			Drain:    duration(30 * time.Second),
		},
		Listen: listenConfig{
			Control:       []string{"[::]:2121"},
			TLS:           []string{},
			Datagram:      []string{"[::]:2121"},
			Local:         []string{"/run/berth/berth.sock"},
			LocalDatagram: []string{},
			// Metrics name users, so they stay on the machine unless asked otherwise.
			HTTP:      []string{"127.0.0.1:9621"},
			LocalMode: 0o666, ProxyFrom: []network{},
		},
		TLS:     tlsConfig{Require: "remote", SessionReuse: "off"},
		Passive: passiveConfig{Ports: portRange{50000, 50999}},
		Limits: limitsConfig{
			Sessions:           1000,
			SessionsPerAddress: 100,
			LoginFailures:      10,
			Ban:                duration(10 * time.Minute),
			LoginTimeout:       duration(time.Minute),
			Idle:               duration(10 * time.Minute),
			DataTimeout:        duration(time.Minute),
		},
		Transfer: transferConfig{Durable: true, PartialTTL: duration(24 * time.Hour), Digest: "on-demand"},
		Exec: execConfig{Sandbox: "landlock", Timeout: duration(5 * time.Minute), Output: 64 << 20, KillAfter: duration(5 * time.Second),
			Parallel: 100, ParallelPerUser: 50},
		HTTP:    httpConfig{Users: []string{}},
		Metrics: metricsConfig{PerUser: true},
		Log:     logConfig{Format: "auto", Level: "info", Rate: 20},
	}
}

// --- loading ---

// loadConfig reads the configuration that a daemon starts or reloads with. The
// error, if any, is a configErrors.
func loadConfig(path string) (*config, error) {
	c, errs := checkConfig(path)
	if len(errs) > 0 {
		return nil, errs
	}
	return c, nil
}

// checkConfig is loadConfig for berth check: the list of everything that is wrong
// with the file, none if it is right. The config is to be used only then.
func checkConfig(path string) (*config, configErrors) {
	data, errs := readConfigFile(path)
	if errs != nil {
		return nil, errs
	}
	return parseConfig(path, data)
}

// readConfigFile reads at most maxConfigFile bytes.
func readConfigFile(path string) ([]byte, configErrors) {
	whole := func(format string, args ...any) configErrors {
		return configErrors{{File: path, Problem: fmt.Sprintf(format, args...)}}
	}
	data, err := readConfigBytes(path, maxConfigFile)
	switch {
	case errors.Is(err, fs.ErrNotExist) && path == defaultConfigPath:
		return nil, whole(`no such file; create it (an empty file is valid), name another with --config FILE, or try "berth demo"`)
	case errors.Is(err, fs.ErrNotExist):
		return nil, whole("no such file; create it (an empty file is valid) or correct --config FILE")
	case errors.Is(err, fs.ErrPermission):
		return nil, whole("permission denied; run as root or as the user berth runs as")
	case err != nil:
		return nil, whole("%v; name a readable file with --config FILE", err)
	}
	return data, nil
}

// readConfigBytes is os.ReadFile for at most limit bytes; its errors do not repeat the path.
func readConfigBytes(path string, limit int) ([]byte, error) {
	f, err := os.Open(path)
	if err == nil {
		defer f.Close()
		var data []byte
		if data, err = io.ReadAll(io.LimitReader(f, int64(limit)+1)); len(data) > limit {
			return nil, errorf("longer than %v", byteSize(limit))
		}
		if err == nil {
			return data, nil
		}
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return nil, err
}

// parseConfig is the part of checkConfig that needs no file but those the text names.
func parseConfig(file string, data []byte) (*config, configErrors) {
	c := defaultConfig()
	doc := parseTOML(file, data, reflect.TypeFor[config]())
	doc.decode(reflect.ValueOf(c).Elem())
	check := configChecker{doc}
	check.config(c)
	doc.sort()
	return c, doc.errs
}

// --- meaning ---

var (
	configHostName     = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*\.?$`)
	configCommandName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
	commandPlaceholder = regexp.MustCompile(`\{([A-Za-z_][A-Za-z0-9_-]*)\}`)
)

// configChecker finds mistakes of meaning in values of the right kind.
type configChecker struct{ *tomlDocument }

// bad records a mistake at the line of key, unless key is known to be wrong.
//
// Not inlined, as usageErr.
//
//go:noinline
func (c configChecker) bad(key, format string, args ...any) { c.badAt(key, key, format, args...) }

// badAt is bad at the line of another key.
func (c configChecker) badAt(place, key, format string, args ...any) {
	if !c.errs.has(key) {
		c.add(configError{
			File: c.file, Line: c.at.line(place), Key: key, Problem: fmt.Sprintf(format, args...)})
	}
}

func (c configChecker) config(cfg *config) {
	c.server(&cfg.Server)
	c.listen(&cfg.Listen)
	c.tls(&cfg.TLS)
	c.passive(&cfg.Passive)
	c.profiles(&cfg.Profiles)
	c.limits(&cfg.Limits)
	c.oneOf("transfer.digest", cfg.Transfer.Digest, "on-demand", "always")
	if path, ok := cutPrefix(cfg.Exec.Runner, commandRunnerScheme); ok {
		c.unixPath("exec.runner", path, commandRunnerScheme)
	} else if cfg.Exec.Runner != "" {
		c.bad("exec.runner", `%s is not a runner; write "unix:/run/berth/runner.sock", or "" for none`, configQuote(cfg.Exec.Runner))
	}
	c.oneOf("exec.sandbox", cfg.Exec.Sandbox, "landlock", "best-effort", "off")
	for key, n := range map[string]int{"exec.parallel": cfg.Exec.Parallel, "exec.parallel_per_user": cfg.Exec.ParallelPerUser} {
		if n < 1 {
			c.bad(key, "%d is below 1; write how many commands may run at once", n)
		}
	}
	c.sandboxPaths("exec", cfg.Exec.Read, cfg.Exec.Write)
	c.oneOf("log.format", cfg.Log.Format, "auto", "journal", "text", "json")
	c.oneOf("log.level", cfg.Log.Level, "debug", "info", "warn", "error")
	if cfg.Log.Transfers != "" {
		c.absolute("log.transfers", cfg.Log.Transfers, "/var/log/berth/xferlog")
	}
	if cfg.Log.Rate < 0 {
		c.bad("log.rate", "%d is below 0; write how many lines a second, or 0 for no limit", cfg.Log.Rate)
	}
	for i, name := range cfg.HTTP.Users {
		if err := checkUserName(name); err != nil {
			c.bad(fmt.Sprintf("http.users[%d]", i), "%v", err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Commands)) {
		c.command(name, cfg.Commands[name])
	}
}

func (c configChecker) oneOf(key, value string, known ...string) {
	if !inList(known, value) {
		c.bad(key, `%s is not known; write "%s" or %q`, configQuote(value),
			strings.Join(known[:len(known)-1], `", "`), known[len(known)-1])
	}
}

// absolute holds for every path: the daemon's working directory is nobody's idea of a base.
func (c configChecker) absolute(key, path, example string) {
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		c.bad(key, "%s is not an absolute path; write one like %q", configQuote(path), example)
	}
}

func (c configChecker) server(s *serverConfig) {
	// The name is in the greeting, where a line end would begin a second reply.
	switch {
	case s.Name == "":
		c.bad("server.name", `empty; write a name for the greeting, as "berth"`)
	case len(s.Name) > maxHostName:
		c.bad("server.name", "%d bytes long; the most is %d", len(s.Name), maxHostName)
	case configHasControl(s.Name):
		c.bad("server.name", `%s has control characters; write a plain name, as "berth"`, configQuote(s.Name))
	}
	c.absolute("server.state_dir", s.StateDir, "/var/lib/berth")
	c.absolute("server.users_dir", s.UsersDir, "/etc/berth/users.d")
}

//go:noinline
func configHasControl(s string) bool { return strings.ContainsFunc(s, unicode.IsControl) }

func (c configChecker) listen(l *listenConfig) {
	taken := map[string]string{}
	claim := func(kind, key, address string) {
		if other, ok := taken[kind+address]; ok {
			c.bad(key, "%s is also in %s; remove one of the two", configQuote(address), other)
			return
		}
		taken[kind+address] = key
	}
	for _, group := range []struct {
		kind, key string
		addresses []string
	}{
		{"tcp ", "listen.control", l.Control},
		{"tcp ", "listen.tls", l.TLS},
		{"tcp ", "listen.http", l.HTTP},
		{"udp ", "listen.datagram", l.Datagram},
	} {
		for i, address := range group.addresses {
			key := fmt.Sprintf("%s[%d]", group.key, i)
			host, port, problem := splitListen(address)
			if problem != "" {
				c.bad(key, "%s", problem)
			} else if port != 0 { // the kernel never chooses the same port twice
				claim(group.kind, key, joinHostPort(host, itoa(port)))
			}
		}
	}
	if l.Backlog < 0 || l.Backlog > maxBacklog {
		c.bad("listen.backlog", "%d is not from 0 to %d; write how many connections may wait, or 0 for the system's own number", l.Backlog, maxBacklog)
	}
	if l.DatagramBuffer > maxDatagramBuffer {
		c.bad("listen.datagram_buffer", "%v is more than %v; write a size like %q", l.DatagramBuffer, byteSize(maxDatagramBuffer), "1MiB")
	}
	if strings.ContainsAny(l.LocalGroup, ": \x00\n") {
		c.bad("listen.local_group", `%s is not the name of a group; write one like "berth-admin"`, configQuote(l.LocalGroup))
	}
	for _, group := range []struct {
		key   string
		paths []string
	}{
		{"listen.local", l.Local},
		{"listen.local_datagram", l.LocalDatagram},
	} {
		for i, path := range group.paths {
			key := fmt.Sprintf("%s[%d]", group.key, i)
			c.unixPath(key, path, "")
			claim("unix ", key, filepath.Clean(path))
		}
	}
}

// splitListen takes a HOST:PORT apart; problem is what is wrong with it and what
// would be right. The host comes back in one spelling for each meaning.
func splitListen(s string) (host string, port int, problem string) {
	const usage = `write "[::]:2121" or ":2121" for every address, or one as "192.0.2.1:2121"`
	bad := func(what string) (string, int, string) {
		return "", 0, configQuote(s) + " " + what
	}
	host, portText, err := net.SplitHostPort(s)
	if err != nil {
		switch a, addrErr := netip.ParseAddr(s); {
		case configAllDigits(s) && len(s) <= 5:
			return bad(fmt.Sprintf("is only a port; write %q", ":"+s))
		case addrErr == nil:
			return bad(fmt.Sprintf("has no port; write %q", netip.AddrPortFrom(a, 2121)))
		case beginsWith(s, "/"):
			return bad("is a path, which belongs in listen.local; " + usage)
		}
		return bad("is not HOST:PORT; " + usage)
	}
	n, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return bad("has no port from 0 to 65535; " + usage)
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Unmap().String(), int(n), ""
	}
	if host == "" {
		return netip.IPv6Unspecified().String(), int(n), "" // what net.Listen makes of it
	}
	if !configValidHostName(host) {
		return bad("has no valid host; " + usage)
	}
	return strings.ToLower(host), int(n), ""
}

// configValidHostName tells whether s is a name to look up. One that ends in digits is a
// mistyped IPv4 address.
func configValidHostName(s string) bool {
	if len(s) > maxHostName || !configHostName.MatchString(s) {
		return false
	}
	s = strings.TrimSuffix(s, ".")
	return !configAllDigits(s[strings.LastIndexByte(s, '.')+1:])
}

func (c configChecker) unixPath(key, path, scheme string) {
	const example = "/run/berth/berth.sock"
	switch {
	case !filepath.IsAbs(path) || strings.ContainsRune(path, 0) || strings.HasSuffix(path, "/"):
		c.bad(key, "%s is not the absolute path of a socket; write one like %q", configQuote(scheme+path), scheme+example)
	case len(path) > maxUnixPath:
		c.bad(key, "%d bytes long, and a socket path has at most %d; write a shorter one, as %q", len(path), maxUnixPath, scheme+example)
	}
}

func (c configChecker) tls(t *tlsConfig) {
	misspelt := c.errs.has("tls") // what seems to be missing may be there under a wrong name
	c.oneOf("tls.require", t.Require, "remote", "always", "none")
	c.oneOf("tls.session_reuse", t.SessionReuse, "off", "warn", "on")
	certificate := c.pemFile("tls.certificate", t.Certificate)
	key := c.pemFile("tls.key", t.Key)
	switch complete := !c.partial && !misspelt; {
	case complete && t.Certificate != "" && t.Key == "":
		c.badAt("tls.certificate", "tls.key", `missing beside tls.certificate; write key = "/etc/berth/key.pem", or certificate = "" for one that berth makes`)
	case complete && t.Certificate == "" && t.Key != "":
		c.badAt("tls.key", "tls.certificate", `missing beside tls.key; write certificate = "/etc/berth/cert.pem", or key = "" for one that berth makes`)
	case certificate != nil && key != nil:
		if _, err := tls.X509KeyPair(certificate, key); err != nil {
			c.bad("tls.certificate", "%s and %s cannot be used together: %s; name a PEM certificate and its own key",
				configQuote(t.Certificate), configQuote(t.Key), strings.TrimPrefix(err.Error(), "tls: "))
		}
	}
	if pem := c.pemFile("tls.client_ca", t.ClientCA); pem != nil && !x509.NewCertPool().AppendCertsFromPEM(pem) {
		c.bad("tls.client_ca", "%s has no PEM certificate; name a file that has", configQuote(t.ClientCA))
	}
}

// pemFile is the content of a file that has to be there, nil if it is not set, not
// right, or not readable for whoever asks: berth check may run as another user.
func (c configChecker) pemFile(key, path string) []byte {
	if path == "" || c.errs.has(key) {
		return nil
	}
	if c.absolute(key, path, "/etc/berth/cert.pem"); c.errs.has(key) {
		return nil
	}
	// Not a FIFO or device, which could make a reload wait for ever.
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		c.bad(key, "%s is not a regular file; name a PEM file", configQuote(path))
		return nil
	}
	data, err := readConfigBytes(path, maxPEMFile)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil
	case err != nil:
		c.bad(key, "%s: %v; name a readable PEM file", configQuote(path), err)
		return nil
	}
	return append([]byte{}, data...) // never nil: an empty file is to be judged
}

func (c configChecker) passive(p *passiveConfig) {
	if p.Address != "" {
		c.reachable("passive.address", p.Address)
	}
	seen := map[netip.Prefix]int{}
	for i, f := range p.For {
		key := fmt.Sprintf("passive.for[%d]", i)
		misspelt := c.errs.has(key)
		c.eachNetwork("passive.for", i, f.Network, seen)
		if f.Address != "" {
			c.reachable(key+".address", f.Address)
		} else if !c.partial && !misspelt {
			c.bad(key+".address", `missing; write address = "192.0.2.1", what PASV tells these clients`)
		}
	}
}

// eachNetwork checks the network of one of the tables of a list, in which each counts once.
func (c configChecker) eachNetwork(list string, i int, n network, seen map[netip.Prefix]int) {
	key := fmt.Sprintf("%s[%d]", list, i)
	switch first, twice := seen[n.Prefix]; {
	case !n.IsValid():
		if !c.partial && !c.errs.has(key) {
			c.bad(key+".network", `missing; write network = "10.0.0.0/8"`)
		}
	case twice:
		c.bad(key+".network", "%v is in %s[%d] already; keep one of the two", n, list, first)
	default:
		seen[n.Prefix] = i
	}
}

func (c configChecker) profiles(p *profilesConfig) {
	seen := map[netip.Prefix]int{}
	for i, f := range p.For {
		key := fmt.Sprintf("profiles.for[%d]", i)
		misspelt := c.errs.has(key)
		c.eachNetwork("profiles.for", i, f.Network, seen)
		if problem := checkProfile(f.Profile); f.Profile != "" && problem != "" {
			c.bad(key+".profile", "%s", problem)
		} else if f.Profile == "" && !c.partial && !misspelt {
			c.bad(key+".profile", `missing; write profile = "camera"`)
		}
	}
}

// reachable checks an address that clients are told to connect to.
func (c configChecker) reachable(key, s string) {
	const usage = `write an address that clients reach, as "192.0.2.1", or a host name`
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil && !configValidHostName(s):
		c.bad(key, "%s is neither an IP address nor a host name; %s", configQuote(s), usage)
	case err == nil && (a.IsUnspecified() || a.IsMulticast() || a.Zone() != ""):
		c.bad(key, "%s is no address to connect to; %s", configQuote(s), usage)
	}
}

func (c configChecker) limits(l *limitsConfig) {
	positive := func(key string, n, standard int) {
		if n <= 0 {
			c.bad(key, "%d is not above 0; write a number like %d", n, standard)
		}
	}
	positive("limits.sessions", l.Sessions, 1000)
	positive("limits.sessions_per_address", l.SessionsPerAddress, 100)
	positive("limits.login_failures", l.LoginFailures, 10)
	// Whoever has not logged in, or has stopped moving data, must not hold a
	// session for ever; an idle user may, if the operator says so.
	for _, bound := range []struct {
		key string
		d   duration
	}{{"limits.login_timeout", l.LoginTimeout}, {"limits.data_timeout", l.DataTimeout}} {
		if bound.d == 0 {
			c.bad(bound.key, `"0" would hold sessions for ever; write a time like "1m"`)
		}
	}
}

func (c configChecker) command(name string, cmd commandConfig) {
	path := tomlJoinKey("commands", name)
	complete := !c.partial && !c.errs.has(path)
	if !configCommandName.MatchString(name) {
		c.bad(path, `%s is not a command name; use letters, digits, ".", "_" and "-", as [commands.uptime]`, configQuote(name))
	}
	c.sandboxPaths(path, cmd.Read, cmd.Write)
	if configHasControl(cmd.Help) {
		c.bad(path+".help", "has line ends or control characters; write one line")
	}
	used := map[string]bool{}
	for i, arg := range cmd.Run {
		key := fmt.Sprintf("%s.run[%d]", path, i)
		if strings.ContainsRune(arg, 0) {
			c.bad(key, "has a NUL, which no argument can; remove it")
			continue
		}
		placeholders := commandPlaceholder.FindAllStringSubmatch(arg, -1)
		if i == 0 {
			// A client that could choose the program would have a shell.
			if !filepath.IsAbs(arg) || len(placeholders) > 0 {
				c.bad(key, `%s is not the absolute path of a program; write one like "/usr/bin/uptime"`, configQuote(arg))
			}
			continue
		}
		for _, m := range placeholders {
			if used[m[1]] = true; complete && !hasRule(cmd, m[1]) {
				c.bad(key, `{%s} has no rule; write args = { %[1]s = "^[a-z0-9-]+$" }, what its value must match`, m[1])
			}
		}
	}
	if len(cmd.Run) == 0 && complete {
		c.bad(path+".run", `missing; write run = ["/usr/bin/uptime"], the program and its arguments`)
	}
	for _, arg := range slices.Sorted(maps.Keys(cmd.Args)) {
		key, rule := tomlJoinKey(path+".args", arg), cmd.Args[arg]
		if _, err := compileArgRule(rule); err != nil {
			c.bad(key, `%s is not a regular expression (%v); write one like "^[a-z0-9-]+$"`, configQuote(rule), err)
		} else if rule == "" {
			c.bad(key, `an empty rule matches no value but the empty one; write one like "^[a-z0-9-]+$"`)
		} else if !used[arg] && complete {
			c.bad(key, "no {%s} in run; put it where the value belongs, or remove the rule", arg)
		}
	}
}

// sandboxPaths checks what commands may touch besides.
func (c configChecker) sandboxPaths(section string, read, write []string) {
	for key, paths := range map[string][]string{"read": read, "write": write} {
		for i, p := range paths {
			if !filepath.IsAbs(p) || strings.ContainsRune(p, 0) {
				c.bad(fmt.Sprintf("%s.%s[%d]", section, key, i), `%s is not an absolute path; write one like "/dev/video0"`, configQuote(p))
			}
		}
	}
}

func hasRule(cmd commandConfig, arg string) bool {
	_, ok := cmd.Args[arg]
	return ok
}

// compileArgRule is the rule for the value of one placeholder of a command. It
// matches whole values only, whatever anchors the rule has: "a|b" must not let
// "a; anything" through.
func compileArgRule(rule string) (*regexp.Regexp, error) {
	// By itself first, so that a stray ")" cannot close the group around it.
	if _, err := regexp.Compile(rule); err != nil {
		return nil, newError(strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	return regexp.Compile(`\A(?:` + rule + `)\z`)
}
