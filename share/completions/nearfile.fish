# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_nearfile_global_optspecs
    string join \n d/dir= json color= h/help V/version
end

function __fish_nearfile_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_nearfile_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_nearfile_using_subcommand
    set -l cmd (__fish_nearfile_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c nearfile -n "__fish_nearfile_needs_command" -s d -l dir -d 'The cache directory [default: $XDG_CACHE_HOME/nearfile, else $HOME/.cache/nearfile]' -r -f -a "(__fish_complete_directories)"
complete -c nearfile -n "__fish_nearfile_needs_command" -l color -d 'Colours and progress: `auto` where the output is a terminal' -r -f -a "auto\t''
always\t''
never\t''"
complete -c nearfile -n "__fish_nearfile_needs_command" -l json -d 'Print JSON, bytes and seconds as plain numbers'
complete -c nearfile -n "__fish_nearfile_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nearfile -n "__fish_nearfile_needs_command" -s V -l version -d 'Print version'
complete -c nearfile -n "__fish_nearfile_needs_command" -f -a "ls" -d 'List the near copies of the directory'
complete -c nearfile -n "__fish_nearfile_needs_command" -f -a "stat" -d 'Show the numbers of the directory, or of the near copies of a key'
complete -c nearfile -n "__fish_nearfile_needs_command" -f -a "map" -d 'Draw which pages of a file are here, verified, hot'
complete -c nearfile -n "__fish_nearfile_needs_command" -f -a "verify" -d 'Compare every page that is here with its checksum'
complete -c nearfile -n "__fish_nearfile_needs_command" -f -a "warm" -d 'Fetch a file, or ranges of it, before a program needs it'
complete -c nearfile -n "__fish_nearfile_needs_command" -f -a "trim" -d 'Give up the least useful pages until the directory holds no more than SIZE'
complete -c nearfile -n "__fish_nearfile_needs_command" -f -a "rm" -d 'Remove what is kept of keys, every version'
complete -c nearfile -n "__fish_nearfile_needs_command" -f -a "preserve" -d 'Copy what is here of a file to PATH and PATH.index, to be opened again by these two'
complete -c nearfile -n "__fish_nearfile_needs_command" -f -a "top" -d 'Watch the rates of hits, source bytes and evictions over all processes'
complete -c nearfile -n "__fish_nearfile_needs_command" -f -a "prometheus" -d 'Write the directory\'s numbers for Prometheus (text format 0.0.4)'
complete -c nearfile -n "__fish_nearfile_using_subcommand ls" -l sort -d 'What comes first' -r -f -a "used\t'The last used first'
held\t'The largest part of the limit first'
size\t'The largest file first'
key\t'By key'"
complete -c nearfile -n "__fish_nearfile_using_subcommand ls" -s d -l dir -d 'The cache directory [default: $XDG_CACHE_HOME/nearfile, else $HOME/.cache/nearfile]' -r -f -a "(__fish_complete_directories)"
complete -c nearfile -n "__fish_nearfile_using_subcommand ls" -l color -d 'Colours and progress: `auto` where the output is a terminal' -r -f -a "auto\t''
always\t''
never\t''"
complete -c nearfile -n "__fish_nearfile_using_subcommand ls" -l json -d 'Print JSON, bytes and seconds as plain numbers'
complete -c nearfile -n "__fish_nearfile_using_subcommand ls" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nearfile -n "__fish_nearfile_using_subcommand stat" -s d -l dir -d 'The cache directory [default: $XDG_CACHE_HOME/nearfile, else $HOME/.cache/nearfile]' -r -f -a "(__fish_complete_directories)"
complete -c nearfile -n "__fish_nearfile_using_subcommand stat" -l color -d 'Colours and progress: `auto` where the output is a terminal' -r -f -a "auto\t''
always\t''
never\t''"
complete -c nearfile -n "__fish_nearfile_using_subcommand stat" -l json -d 'Print JSON, bytes and seconds as plain numbers'
complete -c nearfile -n "__fish_nearfile_using_subcommand stat" -s h -l help -d 'Print help'
complete -c nearfile -n "__fish_nearfile_using_subcommand map" -l version -d 'The version to show [default: the newest]' -r
complete -c nearfile -n "__fish_nearfile_using_subcommand map" -l png -d 'Write a picture to FILE instead, a square a page' -r -F
complete -c nearfile -n "__fish_nearfile_using_subcommand map" -l width -d 'Characters (or, with --png, pixels) across [default: the terminal\'s, else 80; 960]' -r
complete -c nearfile -n "__fish_nearfile_using_subcommand map" -s d -l dir -d 'The cache directory [default: $XDG_CACHE_HOME/nearfile, else $HOME/.cache/nearfile]' -r -f -a "(__fish_complete_directories)"
complete -c nearfile -n "__fish_nearfile_using_subcommand map" -l color -d 'Colours and progress: `auto` where the output is a terminal' -r -f -a "auto\t''
always\t''
never\t''"
complete -c nearfile -n "__fish_nearfile_using_subcommand map" -l json -d 'Print JSON, bytes and seconds as plain numbers'
complete -c nearfile -n "__fish_nearfile_using_subcommand map" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nearfile -n "__fish_nearfile_using_subcommand verify" -s d -l dir -d 'The cache directory [default: $XDG_CACHE_HOME/nearfile, else $HOME/.cache/nearfile]' -r -f -a "(__fish_complete_directories)"
complete -c nearfile -n "__fish_nearfile_using_subcommand verify" -l color -d 'Colours and progress: `auto` where the output is a terminal' -r -f -a "auto\t''
always\t''
never\t''"
complete -c nearfile -n "__fish_nearfile_using_subcommand verify" -l repair -d 'Drop what does not match, so that it is fetched again'
complete -c nearfile -n "__fish_nearfile_using_subcommand verify" -l json -d 'Print JSON, bytes and seconds as plain numbers'
complete -c nearfile -n "__fish_nearfile_using_subcommand verify" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nearfile -n "__fish_nearfile_using_subcommand warm" -l key -d 'The key [default: from the source]' -r
complete -c nearfile -n "__fish_nearfile_using_subcommand warm" -l version -d 'The version [default: from the source]' -r
complete -c nearfile -n "__fish_nearfile_using_subcommand warm" -l page-size -d 'Bytes a page of a new near copy [default: 1M]' -r
complete -c nearfile -n "__fish_nearfile_using_subcommand warm" -l connections -d 'Requests at once' -r
complete -c nearfile -n "__fish_nearfile_using_subcommand warm" -s H -l header -d 'A header for the server, "Name: value", or @FILE with one a line; may be repeated' -r
complete -c nearfile -n "__fish_nearfile_using_subcommand warm" -s d -l dir -d 'The cache directory [default: $XDG_CACHE_HOME/nearfile, else $HOME/.cache/nearfile]' -r -f -a "(__fish_complete_directories)"
complete -c nearfile -n "__fish_nearfile_using_subcommand warm" -l color -d 'Colours and progress: `auto` where the output is a terminal' -r -f -a "auto\t''
always\t''
never\t''"
complete -c nearfile -n "__fish_nearfile_using_subcommand warm" -l json -d 'Print JSON, bytes and seconds as plain numbers'
complete -c nearfile -n "__fish_nearfile_using_subcommand warm" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nearfile -n "__fish_nearfile_using_subcommand trim" -s d -l dir -d 'The cache directory [default: $XDG_CACHE_HOME/nearfile, else $HOME/.cache/nearfile]' -r -f -a "(__fish_complete_directories)"
complete -c nearfile -n "__fish_nearfile_using_subcommand trim" -l color -d 'Colours and progress: `auto` where the output is a terminal' -r -f -a "auto\t''
always\t''
never\t''"
complete -c nearfile -n "__fish_nearfile_using_subcommand trim" -l json -d 'Print JSON, bytes and seconds as plain numbers'
complete -c nearfile -n "__fish_nearfile_using_subcommand trim" -s h -l help -d 'Print help'
complete -c nearfile -n "__fish_nearfile_using_subcommand rm" -s d -l dir -d 'The cache directory [default: $XDG_CACHE_HOME/nearfile, else $HOME/.cache/nearfile]' -r -f -a "(__fish_complete_directories)"
complete -c nearfile -n "__fish_nearfile_using_subcommand rm" -l color -d 'Colours and progress: `auto` where the output is a terminal' -r -f -a "auto\t''
always\t''
never\t''"
complete -c nearfile -n "__fish_nearfile_using_subcommand rm" -l json -d 'Print JSON, bytes and seconds as plain numbers'
complete -c nearfile -n "__fish_nearfile_using_subcommand rm" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nearfile -n "__fish_nearfile_using_subcommand preserve" -l version -d 'The version to copy [default: the newest]' -r
complete -c nearfile -n "__fish_nearfile_using_subcommand preserve" -s d -l dir -d 'The cache directory [default: $XDG_CACHE_HOME/nearfile, else $HOME/.cache/nearfile]' -r -f -a "(__fish_complete_directories)"
complete -c nearfile -n "__fish_nearfile_using_subcommand preserve" -l color -d 'Colours and progress: `auto` where the output is a terminal' -r -f -a "auto\t''
always\t''
never\t''"
complete -c nearfile -n "__fish_nearfile_using_subcommand preserve" -l json -d 'Print JSON, bytes and seconds as plain numbers'
complete -c nearfile -n "__fish_nearfile_using_subcommand preserve" -s h -l help -d 'Print help'
complete -c nearfile -n "__fish_nearfile_using_subcommand top" -s i -l interval -d 'Seconds between two looks' -r
complete -c nearfile -n "__fish_nearfile_using_subcommand top" -s n -l count -d 'End after so many looks' -r
complete -c nearfile -n "__fish_nearfile_using_subcommand top" -s d -l dir -d 'The cache directory [default: $XDG_CACHE_HOME/nearfile, else $HOME/.cache/nearfile]' -r -f -a "(__fish_complete_directories)"
complete -c nearfile -n "__fish_nearfile_using_subcommand top" -l color -d 'Colours and progress: `auto` where the output is a terminal' -r -f -a "auto\t''
always\t''
never\t''"
complete -c nearfile -n "__fish_nearfile_using_subcommand top" -l json -d 'Print JSON, bytes and seconds as plain numbers'
complete -c nearfile -n "__fish_nearfile_using_subcommand top" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nearfile -n "__fish_nearfile_using_subcommand prometheus" -l out -d 'Write to FILE, in one step, as a node exporter\'s textfile collector wants it (a name that ends in .prom)' -r -F
complete -c nearfile -n "__fish_nearfile_using_subcommand prometheus" -s d -l dir -d 'The cache directory [default: $XDG_CACHE_HOME/nearfile, else $HOME/.cache/nearfile]' -r -f -a "(__fish_complete_directories)"
complete -c nearfile -n "__fish_nearfile_using_subcommand prometheus" -l color -d 'Colours and progress: `auto` where the output is a terminal' -r -f -a "auto\t''
always\t''
never\t''"
complete -c nearfile -n "__fish_nearfile_using_subcommand prometheus" -l json -d 'Print JSON, bytes and seconds as plain numbers'
complete -c nearfile -n "__fish_nearfile_using_subcommand prometheus" -s h -l help -d 'Print help'
