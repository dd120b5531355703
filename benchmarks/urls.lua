-- What wrk asks for: at random one of the URLs in a file, which is the argument, at every request.
local requests = {}

function init(arguments)
    for line in io.lines(arguments[1]) do
        requests[#requests + 1] = wrk.format("GET", line)
    end
    math.randomseed(1) -- all peers are asked for the same, in the same order
end

function request()
    return requests[math.random(#requests)]
end
